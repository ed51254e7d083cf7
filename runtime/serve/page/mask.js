// A brush over a photo. The canvas holds what is to be restored, opaque on transparent.

const MAX_SIDE = 1024; // the server brings a mask to the photo's size

export class Mask {
  constructor(image, tools) {
    this.tools = tools;
    this.canvas = document.createElement("canvas");
    const scale = Math.min(1, MAX_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
    this.canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
    this.canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", "Mask: arrows move the brush, space paints, E erases");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.cursor = document.createElement("div");
    this.cursor.className = "cursor";
    this.cursor.hidden = true;
    this.place = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
    this.canvas.addEventListener("pointerdown", (event) => this.#start(event));
    this.canvas.addEventListener("pointermove", (event) => this.#move(event));
    this.canvas.addEventListener("pointerup", () => (this.last = null));
    this.canvas.addEventListener("pointercancel", () => (this.last = null));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("focus", () => this.#showCursor());
    this.canvas.addEventListener("blur", () => (this.cursor.hidden = true));
  }

  get radius() {
    return (this.tools.size() / 100) * Math.min(this.canvas.width, this.canvas.height);
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  isEmpty() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let i = 3; i < data.length; i += 4) if (data[i] > 127) return false;
    return true;
  }

  // White on black, as the server takes it.
  toBlob() {
    const copy = document.createElement("canvas");
    copy.width = this.canvas.width;
    copy.height = this.canvas.height;
    const context = copy.getContext("2d");
    const image = this.context.getImageData(0, 0, copy.width, copy.height);
    for (let i = 0; i < image.data.length; i += 4) {
      image.data.fill(image.data[i + 3] > 127 ? 255 : 0, i, i + 3);
      image.data[i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * this.canvas.width,
      y: ((event.clientY - box.top) / box.height) * this.canvas.height,
    };
  }

  #start(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.#at(event);
    this.#line(this.last, this.last);
    event.preventDefault();
  }

  #move(event) {
    this.place = this.#at(event);
    if (!this.last) return;
    this.#line(this.last, this.place);
    this.last = this.place;
  }

  #line(from, to) {
    const context = this.context;
    context.globalCompositeOperation = this.tools.erases() ? "destination-out" : "source-over";
    context.strokeStyle = "#ff2d55";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = this.radius * 2;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y);
    context.stroke();
  }

  #key(event) {
    const step = Math.max(2, this.radius);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      const [x, y] = moves[event.key];
      const before = this.place;
      this.place = {
        x: Math.min(this.canvas.width, Math.max(0, before.x + x)),
        y: Math.min(this.canvas.height, Math.max(0, before.y + y)),
      };
      if (event.shiftKey) this.#line(before, this.place);
    } else if (event.key === " ") this.#line(this.place, this.place);
    else if (event.key.toLowerCase() === "e") this.tools.toggleEraser();
    else return;
    event.preventDefault();
    this.#showCursor();
  }

  #showCursor() {
    const size = (this.radius * 2 * this.canvas.clientWidth) / this.canvas.width;
    Object.assign(this.cursor.style, {
      left: `${(this.place.x / this.canvas.width) * 100}%`,
      top: `${(this.place.y / this.canvas.height) * 100}%`,
      width: `${size}px`,
      height: `${size}px`,
    });
    this.cursor.hidden = !this.canvas.matches(":focus-visible");
  }
}
