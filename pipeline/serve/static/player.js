// Pictures of all streams: one WebRTC connection, or one MJPEG answer where that does not come about.

import { ask, change } from "./api.js";

const CONNECT_MS = 8000; // to the first picture by WebRTC
const LOST_MS = 5000; // a connection that is away for so long is given up
const RETRY_MS = [500, 1000, 2000, 5000, 10000];

export class Player {
  // surfaces: one { video, canvas } per stream. onMode(text) says by which way pictures come.
  constructor(viewer, surfaces, { webrtc, onMode }) {
    this.viewer = viewer;
    this.surfaces = surfaces;
    this.webrtc = webrtc && "RTCPeerConnection" in window;
    this.onMode = onMode;
    this.ended = new AbortController();
    this.connection = null;
    this.run();
  }

  stop() {
    this.ended.abort();
    this.connection?.close();
  }

  async run() {
    let failures = 0;
    while (!this.ended.signal.aborted) {
      const began = performance.now();
      try {
        if (this.webrtc) {
          await this.byWebRtc();
        } else {
          await this.byMjpeg();
        }
      } catch (error) {
        if (this.ended.signal.aborted) {
          return;
        }
        if (this.webrtc && !this.cameOnce) {
          this.webrtc = false; // blocked on the way, or not there: it would fail again
          continue;
        }
        console.info(`pictures: ${error.message}`);
      }
      failures = performance.now() - began > 20000 ? 0 : failures + 1;
      await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)], this.ended.signal);
    }
  }

  show(kind) {
    for (const { video, canvas } of this.surfaces) {
      video.hidden = kind !== "video";
      canvas.hidden = kind !== "canvas";
    }
    this.onMode(kind === "video" ? "WebRTC" : "MJPEG");
  }

  async byWebRtc() {
    const connection = new RTCPeerConnection({ iceServers: [] });
    this.connection = connection;
    try {
      this.surfaces.forEach(({ video }) => {
        const { receiver } = connection.addTransceiver("video", { direction: "recvonly" });
        if ("jitterBufferTarget" in receiver) {
          receiver.jitterBufferTarget = 0; // live: late is worse than uneven
        }
        video.srcObject = new MediaStream([receiver.track]);
      });
      await connection.setLocalDescription(await connection.createOffer());
      await gathered(connection);
      const { sdp } = await change("POST", `/api/viewers/${this.viewer}/webrtc`, {
        sdp: connection.localDescription.sdp,
        streams: this.surfaces.map((_, number) => number),
      });
      await connection.setRemoteDescription({ type: "answer", sdp });
      await connected(connection, this.ended.signal);
      this.cameOnce = true;
      this.show("video");
      for (const { video } of this.surfaces) {
        video.play().catch(() => {}); // starts by itself once a picture is there
      }
      await lost(connection, this.ended.signal);
    } finally {
      connection.close();
      this.connection = null;
    }
  }

  async byMjpeg() {
    const response = await ask(`/api/viewers/${this.viewer}/pictures`, { signal: this.ended.signal });
    this.show("canvas");
    const painting = new Set();
    for await (const { stream, jpeg } of parts(response.body.getReader())) {
      if (painting.has(stream)) {
        continue; // this device is slower than the pictures come
      }
      painting.add(stream);
      paint(this.surfaces[stream].canvas, jpeg).finally(() => painting.delete(stream));
    }
  }
}

async function paint(canvas, jpeg) {
  const picture = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext("2d", { alpha: false }).drawImage(picture, 0, 0);
  picture.close();
}

// The parts of a multipart answer. Each has Content-Length and X-Stream.
async function* parts(reader) {
  let held = new Uint8Array(0);
  const text = new TextDecoder("latin1");
  for (;;) {
    const end = headEnd(held);
    if (end >= 0) {
      const head = text.decode(held.subarray(0, end));
      const length = Number(/^content-length: *(\d+)/im.exec(head)?.[1]);
      const stream = Number(/^x-stream: *(\d+)/im.exec(head)?.[1]);
      if (!Number.isInteger(length) || !Number.isInteger(stream)) {
        throw new Error("not the pictures that were expected");
      }
      if (held.length >= end + 4 + length) {
        yield { stream, jpeg: held.slice(end + 4, end + 4 + length) };
        held = held.subarray(end + 4 + length);
        continue;
      }
    }
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
  }
}

function headEnd(bytes) {
  for (let n = 3; n < Math.min(bytes.length, 2048); n += 1) {
    if (bytes[n] === 10 && bytes[n - 1] === 13 && bytes[n - 2] === 10 && bytes[n - 3] === 13) {
      return n - 3;
    }
  }
  return -1;
}

function gathered(connection) {
  return new Promise((resolve) => {
    const look = () => connection.iceGatheringState === "complete" && resolve();
    connection.addEventListener("icegatheringstatechange", look);
    setTimeout(resolve, 2000); // what was found until then will do
    look();
  });
}

function connected(connection, signal) {
  return new Promise((resolve, reject) => {
    const look = () => {
      if (connection.connectionState === "connected") {
        resolve();
      } else if (["failed", "closed"].includes(connection.connectionState)) {
        reject(new Error(`WebRTC: ${connection.connectionState}`));
      }
    };
    connection.addEventListener("connectionstatechange", look);
    signal.addEventListener("abort", () => reject(new Error("stopped")));
    setTimeout(() => reject(new Error("WebRTC: no connection in time")), CONNECT_MS);
    look();
  });
}

function lost(connection, signal) {
  return new Promise((_, reject) => {
    let timer = 0;
    connection.addEventListener("connectionstatechange", () => {
      clearTimeout(timer);
      if (["failed", "closed"].includes(connection.connectionState)) {
        reject(new Error(`WebRTC: ${connection.connectionState}`));
      } else if (connection.connectionState === "disconnected") {
        timer = setTimeout(() => reject(new Error("WebRTC: away")), LOST_MS);
      }
    });
    signal.addEventListener("abort", () => reject(new Error("stopped")));
  });
}

export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
