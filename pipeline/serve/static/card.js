// One source: its picture, figures, switches and buttons.

import { ask, change } from "./api.js";
import { draw } from "./spark.js";

const WAITS = { connecting: "Connecting", stalled: "No picture comes", reconnecting: "Reconnecting" };

export class Card {
  constructor(stream, { viewer, options, say }) {
    this.stream = stream;
    this.viewer = viewer;
    this.options = options;
    this.say = say;
    const template = document.querySelector("#card");
    this.root = template.content.cloneNode(true).firstElementChild;
    this.root.dataset.stream = stream;
    this.find = (selector) => this.root.querySelector(selector);
    this.stage = this.find(".stage");
    this.video = this.find("video");
    this.canvas = this.find("canvas");
    this.recording = false;
    this.listen();
    this.showOptions();
  }

  get path() {
    return `/api/viewers/${this.viewer}/streams/${this.stream}`;
  }

  listen() {
    this.stage.addEventListener("click", (event) => this.click(event));
    this.stage.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.options.selected !== null) {
        this.wish({ selected: null });
      }
    });
    for (const chip of this.root.querySelectorAll("button.chip")) {
      chip.addEventListener("click", () => this.wish({ [chip.dataset.option]: !this.options[chip.dataset.option] }));
    }
    this.find("select").addEventListener("change", (event) => this.wish({ background: event.target.value }));
    this.find(".selection").addEventListener("click", (event) => {
      event.stopPropagation();
      this.wish({ selected: null });
    });
    this.find(".full").addEventListener("click", (event) => {
      event.stopPropagation();
      this.fullScreen();
    });
    this.find(".snapshot").addEventListener("click", () => this.snapshot());
    this.find(".record").addEventListener("click", () => this.record());
  }

  async tried(work) {
    try {
      return await work();
    } catch (error) {
      this.say(error.message);
      return null;
    }
  }

  async wish(options) {
    const found = await this.tried(() => change("PATCH", this.path, options));
    if (found !== null) {
      this.options = found;
    }
    this.showOptions();
  }

  async click(event) {
    if (event.target.closest("button")) {
      return;
    }
    const place = this.placeOf(event);
    if (place === null) {
      return;
    }
    const found = await this.tried(() => change("POST", `${this.path}/click`, place));
    if (found !== null) {
      this.options.selected = found.selected;
      this.showOptions();
    }
  }

  // Shares of the picture, which may have bars beside it.
  placeOf(event) {
    const element = this.video.hidden ? this.canvas : this.video;
    const box = element.getBoundingClientRect();
    const width = this.video.hidden ? this.canvas.width : this.video.videoWidth;
    const height = this.video.hidden ? this.canvas.height : this.video.videoHeight;
    if (element.hidden || !width || !height) {
      return null;
    }
    const scale = Math.min(box.width / width, box.height / height);
    const x = (event.clientX - box.left - (box.width - width * scale) / 2) / (width * scale);
    const y = (event.clientY - box.top - (box.height - height * scale) / 2) / (height * scale);
    return x >= 0 && x <= 1 && y >= 0 && y <= 1 ? { x, y } : null;
  }

  async snapshot() {
    await this.tried(async () => {
      const response = await ask(`/api/streams/${this.stream}/snapshot.png?viewer=${this.viewer}`);
      const name = /filename="([\w.-]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "snapshot.png";
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await response.blob());
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      this.stage.classList.remove("flash");
      requestAnimationFrame(() => this.stage.classList.add("flash"));
      setTimeout(() => this.stage.classList.remove("flash"), 500);
      this.say(`Saved ${name}`);
    });
  }

  async record() {
    const button = this.find(".record");
    button.disabled = true;
    const found = await this.tried(() =>
      change("PUT", `/api/streams/${this.stream}/recording`, { on: !this.recording }),
    );
    button.disabled = false;
    if (found !== null) {
      this.showRecording(found);
      this.say(found.on ? "Recording into the run's output folder" : "Recording ended");
    }
  }

  async fullScreen() {
    if (document.fullscreenElement) {
      await document.exitFullscreen();
    } else if (this.stage.requestFullscreen) {
      await this.tried(() => this.stage.requestFullscreen());
    } else {
      this.video.webkitEnterFullscreen?.(); // a phone that knows only this
    }
  }

  showOptions() {
    for (const chip of this.root.querySelectorAll("button.chip")) {
      chip.setAttribute("aria-pressed", String(this.options[chip.dataset.option]));
    }
    this.find("select").value = this.options.background;
    const selection = this.find(".selection");
    selection.hidden = this.options.selected === null;
    selection.firstElementChild.textContent = `Person ${this.options.selected}`;
    selection.title = "Select nobody";
  }

  showRecording({ possible, on }) {
    this.recording = on;
    const button = this.find(".record");
    button.disabled = !possible;
    button.title = possible ? "" : "Start the run with --output-dir to record";
    button.setAttribute("aria-pressed", String(on));
    button.lastElementChild.textContent = on ? "Stop recording" : "Record";
    this.find(".rec").hidden = !on;
  }

  show(figures, options) {
    this.root.dataset.state = figures.state;
    this.find(".state-text").textContent = figures.state;
    const name = this.find(".name");
    name.textContent = figures.name.startsWith("/") ? figures.name.split("/").at(-1) : figures.name; // the file of a path
    name.title = figures.name;
    this.find(".people").textContent = figures.people;
    const live = figures.state === "live";
    const recent = figures.history.fps.slice(-3); // a slow source gives nothing in some seconds
    const mean = recent.reduce((sum, value) => sum + value, 0) / Math.max(recent.length, 1);
    this.find(".fps").textContent = live ? mean.toFixed(1) : "–";
    const latencies = figures.history.latency_ms.filter((value) => value !== null);
    this.find(".latency").textContent = latencies.length && live ? Math.round(latencies.at(-1)) : "–";
    draw(this.find(".spark-fps"), figures.history.fps);
    draw(this.find(".spark-latency"), figures.history.latency_ms);
    if (figures.width) {
      this.stage.style.aspectRatio = String(Math.max(figures.width / figures.height, 0.8));
    }
    if (options) {
      this.options = options;
      this.showOptions();
    }
    this.showVeil(figures, live);
    this.showRecording(figures.recording);
    this.showMore(figures);
  }

  showVeil(figures, live) {
    const veil = this.find(".veil");
    const shows = this.video.hidden ? !this.canvas.hidden : this.video.readyState >= 2;
    veil.classList.toggle("off", live && shows);
    veil.classList.toggle("still", figures.state === "ended");
    let text = WAITS[figures.state] ?? (live ? "Waiting for pictures" : "This source has ended");
    if (figures.next_try_s !== null) {
      text += ` in ${Math.ceil(figures.next_try_s)} s`;
    }
    this.find(".veil-text").textContent = figures.trouble ? `${text}: ${figures.trouble}` : text;
  }

  showMore(figures) {
    const counts = (found) =>
      Object.entries(found)
        .map(([reason, count]) => `${count} ${reason}`)
        .join(", ") || "none";
    const rows = [
      ["Size", figures.width ? `${figures.width} × ${figures.height} px` : "–"],
      ["Source", `${figures.source_fps.toFixed(1)} FPS`],
      ["Latency p50 / p95", `${Math.round(figures.p50_ms)} / ${Math.round(figures.p95_ms)} ms`],
      ["Frames", `${figures.frames}, with results ${figures.results}`],
      ["Dropped", counts(figures.dropped)],
      ["Reconnects", counts(figures.reconnects)],
      ["Recorded", figures.recording.possible ? `${figures.recording.frames} frames, lost: ${counts(figures.recording.lost)}` : "–"],
    ];
    this.find(".more dl").replaceChildren(
      ...rows.flatMap(([term, text]) => {
        const dt = document.createElement("dt");
        const dd = document.createElement("dd");
        dt.textContent = term;
        dd.textContent = text;
        return [dt, dd];
      }),
    );
  }
}
