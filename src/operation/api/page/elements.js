// Elements and texts. Data from the node becomes text, never markup: reasons and names are untrusted.

export const byId = (id) => document.getElementById(id);

/**
 * A new element. `of` sets properties, and attributes where the name has a dash or is `role`; `children` are elements
 * and texts.
 */
export function element(tag, of = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(of)) {
    if (value === undefined || value === null) continue;
    if (name === "role" || name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A new SVG element with these attributes. */
export function drawn(tag, of = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(of)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Sets a text only if it differs, so that a screen reader does not repeat it. */
export function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

const numbers = new Intl.NumberFormat("en");

/** A number with thousands separators. */
export const count = (number) => numbers.format(number);

/** `1 ban`, `2 bans`. */
export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

/** Seconds in one or two units: `45 s`, `12 min`, `3 h 5 min`, `2 d 4 h`. */
export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  const [minutes, hours, days] = [Math.floor(whole / 60), Math.floor(whole / 3600), Math.floor(whole / 86400)];
  if (hours < 1) return `${minutes} min`;
  const two = (large, unit, small, of) => (small ? `${large} ${unit} ${small} ${of}` : `${large} ${unit}`);
  if (days < 1) return two(hours, "h", minutes % 60, "min");
  return days < 30 ? two(days, "d", hours % 24, "h") : `${count(days)} d`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZoneName: "short" });
const scale = {
  minute: new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" }),
  day: new Intl.DateTimeFormat("en-GB", { weekday: "short", hour: "2-digit", minute: "2-digit" }),
};

/** A time on the axis of a chart, with the weekday if `of` is `day`. The page names the zone once. */
export const zoned = (at, of) => scale[of].format(at);

/** The time zone of all times on the page, such as `Europe/Berlin (GMT+1)`. */
export function timeZone() {
  const zone = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });
  const short = zone.formatToParts().find(({ type }) => type === "timeZoneName").value;
  const { timeZone: long } = zone.resolvedOptions();
  return long === short ? long : `${long} (${short})`;
}

/** A time of day with its zone, and with the date if it is more than 20 hours away. */
export function time(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return String(text ?? "");
  return (Math.abs(at - Date.now()) < 20 * 3600e3 ? clock : date).format(at);
}

const exact = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" });

/** A time with weekday, date and time zone. */
export function moment(text) {
  const at = new Date(text);
  return Number.isNaN(at.getTime()) ? String(text ?? "") : exact.format(at);
}

/** A `<time>` element. */
export const stamp = (text) => element("time", { dateTime: text, title: moment(text) }, time(text));

/** Bytes with a binary unit. */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit += 1) number /= 1024;
  return `${number.toFixed(number < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

/** Shows a message at the edge of the page for six seconds. */
export function toast(text) {
  const shown = element("p", { className: "toast" }, text);
  byId("toasts").append(shown);
  setTimeout(() => shown.remove(), 6000);
}

let announced = 0;
let waiting = [];

/** Announces changes to a screen reader at most every ten seconds; more than three become a count. */
export function announce(text) {
  waiting.push(text);
  if (waiting.length > 1) return;
  setTimeout(() => {
    announced = Date.now();
    byId("announcer").replaceChildren(element("p", {}, waiting.length > 3 ? `${waiting.length} changes` : waiting.join(", ")));
    waiting = [];
  }, Math.max(0, announced + 10_000 - Date.now()));
}
