// What gradio leaves out for the keyboard and for screen readers: arrows go from tab to tab, chips have names.
() => {
    document.addEventListener("keydown", (event) => {
        const tab = event.target.closest?.('[role="tab"]');
        if (!tab) return;
        const tabs = [...tab.parentElement.querySelectorAll('[role="tab"]')];
        const place = tabs.indexOf(tab);
        const next = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: tabs.length - 1 }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        const to = tabs[(next + tabs.length) % tabs.length];
        to.click();
        to.focus();
    });
    const name = () =>
        document.querySelectorAll(".token-remove[title]:not([aria-label])").forEach((one) => {
            one.setAttribute("aria-label", one.title);
        });
    new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
    name();
}
