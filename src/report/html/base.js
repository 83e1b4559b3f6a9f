'use strict';
// The page's data, elements, numbers and colours.
const data = JSON.parse(document.getElementById('data').textContent);

// An element with attributes and children; texts are never markup.
function el(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const plural = (n, what) => `${group(n)} ${what}${n === 1 ? '' : 's'}`;
const group = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ',');

// Three digits; an exponent where that is shorter.
function number(x) {
  if (x === Infinity) return 'infinitely many';
  if (x === 0) return '0';
  if (x >= 1e4 || x < 1e-3) return x.toExponential(1).replace('e+', 'e');
  if (x >= 100) return x.toFixed(0);
  return x >= 10 ? x.toFixed(1) : x.toFixed(2);
}

// The same where there is little room.
function short(x) {
  if (x === Infinity) return '∞';
  if (x >= 9.95) return x >= 999.5 ? x.toExponential(0).replace('e+', 'e') : x.toFixed(0);
  return x < 0.005 ? '0' : x < 0.095 ? x.toFixed(2).slice(1) : x.toFixed(1);
}

// The class of an error by how many limits it is: within in three, beyond in decades.
function level(limits) {
  if (!(limits > 1)) return limits <= 0.1 ? 'w0' : limits <= 0.5 ? 'w1' : 'w2';
  return limits === Infinity ? 'b7' : `b${Math.min(6, Math.max(0, Math.ceil(Math.log10(limits)) - 1))}`;
}

// A row of buttons of which one is on: arrows move, as in a group of radio buttons.
function choice(host, label, options, current, change) {
  host.setAttribute('role', 'radiogroup');
  host.setAttribute('aria-label', label);
  host.classList.add('choice');
  const buttons = options.map(({ value, text, disabled, why }) => el('button', {
    type: 'button', role: 'radio', 'data-value': value, disabled, title: why,
    onclick: () => set(value, true),
  }, text));
  function set(value, tell) {
    for (const button of buttons) {
      const on = button.dataset.value === value;
      button.setAttribute('aria-checked', String(on));
      button.tabIndex = on ? 0 : -1;
    }
    if (tell) change(value);
  }
  host.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const open = buttons.filter((button) => !button.disabled);
    const at = open.indexOf(document.activeElement);
    const next = open[(at + step + open.length) % open.length];
    next.focus();
    set(next.dataset.value, true);
  });
  host.replaceChildren(...buttons);
  set(current, false);
  return set;
}

// Light or dark: as the system says, or as was chosen.
const theme = {
  listeners: [],
  system: window.matchMedia('(prefers-color-scheme: dark)'),
  wanted: 'auto',
  get dark() { return this.wanted === 'auto' ? this.system.matches : this.wanted === 'dark'; },
  apply() {
    document.documentElement.dataset.theme = this.dark ? 'dark' : 'light';
    colours = readColours();
    for (const listener of this.listeners) listener();
  },
  set(wanted) {
    this.wanted = wanted;
    // A page opened from a file may have no storage.
    try { localStorage.setItem('firstdiff-theme', wanted); } catch (error) { void error; }
    this.apply();
  },
};
try { theme.wanted = localStorage.getItem('firstdiff-theme') || 'auto'; } catch (error) { void error; }

// The colours of pictures, as the style sheet has them.
let colours = null;
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => {
    const hex = style.getPropertyValue(`--${name}`).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  };
  const errors = {};
  for (const name of ['w0', 'w1', 'w2', 'b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6', 'b7']) errors[name] = read(name);
  return {
    errors, hatch: read('hatch'), gap: read('gap'), none: read('b7'),
    plus: ['zero', 'plus1', 'plus2'].map(read), minus: ['zero', 'minus1', 'minus2'].map(read),
  };
}

// A colour between three, at a part from 0 to 1.
function between(stops, part) {
  const at = Math.min(part, 0.9999) * 2, from = Math.floor(at), rest = at - from;
  return stops[from].map((value, i) => Math.round(value + (stops[from + 1][i] - value) * rest));
}
