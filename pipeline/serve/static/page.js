// The page: logs in, asks for the figures once a second, and keeps the pictures coming while somebody looks.

import { Refused, askJson, change, logIn, logOut, session } from "./api.js";
import { Card } from "./card.js";
import { Player, pause } from "./player.js";

const POLL_MS = 1000;
const AWAY_MS = 10_000; // in the background for so long: no pictures until somebody looks again
const find = (selector) => document.querySelector(selector);

let cards = [];
let player = null;
let viewer = null;
let state = null;
let running = 0; // each start ends the loop before

function say(text) {
  const toast = document.createElement("p");
  toast.className = "toast";
  toast.textContent = text;
  find("#toasts").append(toast);
  setTimeout(() => toast.remove(), 4000);
}

function banner(text) {
  find("#banner").hidden = !text;
  find("#banner").textContent = text;
}

async function start() {
  running += 1;
  const mine = running;
  await leave();
  let failures = 0;
  while (mine === running) {
    try {
      await step();
      failures = 0;
      banner("");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        await leave();
        askForToken("");
        return;
      }
      if (error instanceof Refused && error.status === 404) {
        await leave(); // away for too long: begin anew
      } else {
        failures += 1;
        banner(failures > 1 ? `${error instanceof Refused ? error.message : "The run does not answer"}. Trying again.` : "");
      }
    }
    await pause(failures > 3 ? 3 * POLL_MS : POLL_MS);
  }
}

async function step() {
  if (viewer === null) {
    const found = await session();
    find("#log-out").hidden = !found.needs_token;
    if (found.csrf === null) {
      throw new Refused(401, "log in");
    }
    state = await askJson("/api/state");
    const made = await change("POST", "/api/viewers");
    viewer = made.viewer;
    cards = state.streams.map(({ stream }) => new Card(stream, { viewer, options: made.options[stream], say }));
    find("#streams").replaceChildren(...cards.map((card) => card.root));
    find("#streams").classList.toggle("one", cards.length === 1);
    find("#login").hidden = true;
  } else {
    state = await askJson(`/api/state?viewer=${viewer}`);
  }
  if (player === null && !document.hidden) {
    play();
  }
  cards.forEach((card, n) => card.show(state.streams[n], state.options?.[n]));
  const live = state.streams.filter((stream) => stream.state === "live");
  const people = live.reduce((sum, stream) => sum + stream.people, 0);
  find("#summary").textContent =
    `${live.length} of ${state.streams.length} live · ${people} ${people === 1 ? "person" : "people"}` +
    ` · ${state.viewers} watching`;
  document.title = `${people} · pose2seg live`;
}

function play() {
  const asked = new URLSearchParams(location.search).get("pictures");
  player = new Player(viewer, cards, {
    webrtc: state.webrtc === null && asked !== "mjpeg",
    onMode: (text) => {
      find("#transport").hidden = false;
      find("#transport").textContent = text;
      document.documentElement.dataset.pictures = text.toLowerCase();
    },
  });
}

function stopPlaying() {
  player?.stop();
  player = null;
}

async function leave() {
  stopPlaying();
  const gone = viewer;
  viewer = null;
  cards = [];
  if (gone !== null) {
    await change("DELETE", `/api/viewers/${gone}`, undefined, { keepalive: true }).catch(() => {});
  }
}

function askForToken(said) {
  find("#streams").replaceChildren();
  find("#summary").textContent = "";
  find("#transport").hidden = true;
  find("#log-out").hidden = true;
  find("#login").hidden = false;
  find("#login-error").textContent = said;
  find("#token").focus();
}

find("#login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = find("#token");
  try {
    await logIn(field.value.trim());
    field.value = "";
    start();
  } catch (error) {
    askForToken(error.message);
    field.select();
  }
});

find("#log-out").addEventListener("click", async () => {
  running += 1;
  await leave();
  await logOut().catch((error) => say(error.message));
  askForToken("");
});

let away = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(away);
  if (document.hidden) {
    away = setTimeout(stopPlaying, AWAY_MS);
  }
});
addEventListener("pagehide", () => {
  leave();
});
addEventListener("pageshow", (event) => {
  if (event.persisted) {
    start();
  }
});

const THEMES = ["", "light", "dark"];
function theme(name) {
  if (name) {
    document.documentElement.dataset.theme = name;
  } else {
    delete document.documentElement.dataset.theme;
  }
}
find("#theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "") + 1) % THEMES.length];
  localStorage.setItem("theme", next);
  theme(next);
  say(next ? `${next === "dark" ? "Dark" : "Light"} colours` : "Colours as the system");
});
theme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "");

// The link that was printed has the token behind a #, which no browser sends; it is used once and taken out of sight.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given !== null) {
  history.replaceState(null, "", location.pathname + location.search);
  logIn(given).then(start, (error) => (error.status === 400 ? start() : askForToken(error.message)));
} else {
  start();
}
