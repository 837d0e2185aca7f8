// The brush: paints a mask over a picture. Runs once for each brush; gradio gives `element`, `props` and `watch`.
// props.value: {picture: data URI, crisp: sharp pixels, mask: data URI of a PNG, opaque where painted, or ""}.
const LONG = 512; // pixels of the mask along its longer side,
const SHORT = 48; // but so many along the shorter one,
const MOST = 8192; // and no more than this
const UNDOS = 20;
const board = element.querySelector(".board");
const image = board.querySelector("img");
const canvas = board.querySelector("canvas");
const ring = board.querySelector(".ring");
const size = element.querySelector("input[type=range]");
const paint = canvas.getContext("2d", { willReadFrequently: true });
const colour = getComputedStyle(document.documentElement).getPropertyValue("--mask").trim() || "#e5481d";
let erasing = false;
let last = null;
let at = [0, 0]; // where the keyboard has the brush
let earlier = [];

const whole = () => paint.getImageData(0, 0, canvas.width, canvas.height);
const remember = () => {
    earlier.push(whole());
    if (earlier.length > UNDOS) earlier.shift();
};

// Hand the mask to the page: it goes along with the next press of the button.
const publish = () => {
    const pixels = whole().data;
    let painted = false;
    for (let i = 3; i < pixels.length && !painted; i += 4) painted = pixels[i] > 127;
    props.value = { ...props.value, mask: painted ? canvas.toDataURL("image/png") : "" };
    board.classList.toggle("painted", painted);
};

const show = async () => {
    const { picture, crisp } = props.value || {};
    board.classList.toggle("empty", !picture);
    board.classList.remove("painted");
    earlier = [];
    if (!picture) return;
    image.className = crisp ? "crisp" : "smooth";
    image.src = picture;
    await image.decode();
    const sides = [image.naturalWidth, image.naturalHeight];
    const long = Math.max(...sides);
    const scale = Math.min(Math.max(LONG / long, SHORT / Math.min(...sides)), MOST / long);
    canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
    canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
    board.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    at = [canvas.width / 2, canvas.height / 2];
};

const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
};

const stroke = (to) => {
    paint.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    paint.strokeStyle = colour;
    paint.lineWidth = Number(size.value);
    paint.lineCap = paint.lineJoin = "round";
    paint.beginPath();
    paint.moveTo(...(last || to));
    paint.lineTo(last ? to[0] : to[0] + 0.1, to[1]); // a line of no length would draw no dot
    paint.stroke();
    last = to;
};

canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    remember();
    last = null;
    stroke(place(event));
});
const showRing = ([x, y]) => {
    const scale = canvas.getBoundingClientRect().width / canvas.width;
    ring.style.width = ring.style.height = `${Number(size.value) * scale}px`;
    ring.style.left = `${x * scale}px`;
    ring.style.top = `${y * scale}px`;
};
canvas.addEventListener("pointermove", (event) => {
    showRing(place(event));
    if (last) (event.getCoalescedEvents?.() ?? [event]).forEach((one) => stroke(place(one)));
});
for (const ending of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(ending, () => {
        if (!last) return;
        last = null;
        publish();
    });
}

// By keyboard: arrows move the brush, the space bar paints where it is, Shift paints on the way, Ctrl-Z takes back.
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("focus", () => showRing(at));
canvas.addEventListener("keydown", (event) => {
    const way = WAYS[event.key];
    const paints = event.key === " " || (way && event.shiftKey);
    const undoes = event.key === "z" && (event.ctrlKey || event.metaKey);
    if (!props.value?.picture || !(way || paints || undoes)) return;
    event.preventDefault();
    if (undoes) acts.undo();
    if (paints) {
        remember();
        stroke(at);
    }
    if (way) {
        const step = Number(size.value) / 4;
        const inside = (value, most) => Math.min(Math.max(value, 0), most);
        at = [inside(at[0] + way[0] * step, canvas.width), inside(at[1] + way[1] * step, canvas.height)];
        if (paints) stroke(at);
        showRing(at);
    }
    last = null;
    if (paints || undoes) publish();
});

const fill = (top) => {
    paint.globalCompositeOperation = "source-over";
    paint.fillStyle = colour;
    paint.fillRect(0, top, canvas.width, canvas.height - top);
};
const acts = {
    undo: () => earlier.length && paint.putImageData(earlier.pop(), 0, 0),
    half: () => {
        remember();
        fill(Math.floor(canvas.height / 2));
    },
    invert: () => {
        remember();
        paint.globalCompositeOperation = "source-out";
        paint.fillStyle = colour;
        paint.fillRect(0, 0, canvas.width, canvas.height);
    },
    clear: () => {
        remember();
        paint.clearRect(0, 0, canvas.width, canvas.height);
    },
};
element.querySelector(".tools").addEventListener("click", (event) => {
    const { tool, act } = event.target.dataset;
    if (tool) {
        erasing = tool === "erase";
        element.querySelectorAll("[data-tool]").forEach((one) => one.setAttribute("aria-pressed", one.dataset.tool === tool));
    }
    if (act && props.value?.picture) {
        acts[act]();
        publish();
    }
});

// A file that is dropped here goes to the upload button of the same tab, which checks it.
board.addEventListener("dragover", (event) => event.preventDefault());
board.addEventListener("drop", (event) => {
    event.preventDefault();
    const input = element.closest("[role=tabpanel]")?.querySelector("input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    const one = new DataTransfer();
    one.items.add(event.dataTransfer.files[0]);
    input.files = one.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
});

watch("value", show);
show();
