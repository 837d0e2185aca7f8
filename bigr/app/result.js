// The pictures of a result: a click enlarges one, and all can be saved. Runs once for each tab; gradio gives `element`.
const dialog = document.createElement("dialog");
dialog.className = "enlarged";
dialog.setAttribute("aria-label", "enlarged picture");
dialog.innerHTML =
    '<img alt=""><p></p><form method="dialog"><button type="button" data-way="-1" aria-label="previous picture">←</button>' +
    '<button type="button" data-way="1" aria-label="next picture">→</button><a>Save</a>' +
    "<button>Close</button></form>";
document.body.append(dialog);
const large = dialog.querySelector("img");
const save = dialog.querySelector("a");
let shown = 0;

const links = () => [...element.querySelectorAll("figure a[download]")];
const file = (link) => ({ href: link.querySelector("img").src, download: link.getAttribute("download") });

const enlarge = (place) => {
    const all = links();
    if (!all.length) return;
    shown = (place + all.length) % all.length;
    const image = all[shown].querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    large.className = image.className;
    large.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    Object.assign(save, file(all[shown]));
    dialog.querySelector("p").textContent = `${image.alt || "picture"} · ${shown + 1} of ${all.length}`;
    if (!dialog.open) dialog.showModal();
};

// A ZIP archive without compression: PNGs have theirs. names and bytes in, a Blob out.
const crc32 = (bytes) => {
    let crc = -1;
    for (const byte of bytes) {
        crc ^= byte;
        for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
    }
    return ~crc >>> 0;
};
const fields = (...pairs) => {
    const view = new DataView(new ArrayBuffer(pairs.reduce((sum, [size]) => sum + size, 0)));
    let at = 0;
    for (const [size, value] of pairs) {
        size === 2 ? view.setUint16(at, value, true) : view.setUint32(at, value, true);
        at += size;
    }
    return new Uint8Array(view.buffer);
};
const zip = (files) => {
    const parts = [];
    const index = [];
    let offset = 0;
    for (const [text, bytes] of files) {
        const name = new TextEncoder().encode(text);
        const size = bytes.length;
        // version, flags (names are UTF-8), method, time, date (1 January 1980), checksum, sizes, length of name, extra
        const common = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 33], [4, crc32(bytes)], [4, size], [4, size], [2, name.length], [2, 0]];
        const head = fields([4, 0x04034b50], ...common);
        parts.push(head, name, bytes);
        index.push(fields([4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), name);
        offset += head.length + name.length + size;
    }
    const length = index.reduce((sum, part) => sum + part.length, 0);
    const end = fields([4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, length], [4, offset], [2, 0]);
    return new Blob([...parts, ...index, end], { type: "application/zip" });
};
const saveAll = () => {
    const files = links().map(file).map(({ href, download }) => [
        download,
        Uint8Array.from(atob(href.slice(href.indexOf(",") + 1)), (char) => char.charCodeAt(0)),
    ]);
    const href = URL.createObjectURL(zip(files));
    Object.assign(document.createElement("a"), { href, download: files[0][0].replace(/-\d+\.png$/, ".zip") }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60000);
};

element.addEventListener("click", (event) => {
    if (event.target.closest("button.all")) saveAll();
    const link = event.target.closest("figure a[download]");
    if (!link) return;
    event.preventDefault();
    enlarge(links().indexOf(link));
});
dialog.addEventListener("click", (event) => {
    const way = event.target.dataset.way;
    if (way) enlarge(shown + Number(way));
    else if (event.target === dialog) dialog.close();
});
dialog.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way) enlarge(shown + way);
});
