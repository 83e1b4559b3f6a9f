// The page of a run: the answer, what is wrong, where, what each side says, and how to make it again.
const main = document.getElementById('main');
const SIGNS = { good: 'Equal', bad: 'Diverged', unsure: 'Undecided' };

function section(id, title, lead, ...content) {
  const made = el('section', { id, 'aria-labelledby': `${id}-title` }, el('h2', { id: `${id}-title` }, title), lead && el('p', { class: 'lead' }, lead), content);
  main.append(made);
  return made;
}

function runVerdict() {
  const wrong = data.findings.filter((one) => !one.is_undeclared);
  if (data.exit === 130 || data.exit === 143) return 'Partial: a signal ended the run';
  if (data.exit === 0) return 'Equal within the floor';
  if (data.exit === 3) return 'Incomparable';
  if (data.exit === 4) return 'Not enough measured';
  const weights = data.weights.length;
  if (wrong.length === 1) return `${capital(wrong[0].what)}: ${wrong[0].cause}`;
  if (wrong.length > 1) return `${wrong.length} mistakes`;
  if (weights) return `Wrong weights: ${data.weights[0]}`;
  if (data.findings.length) return 'No operation is wrong; its arithmetic is not declared';
  if (data.first_divergence !== null) return `First divergence: ${stepName('inherited', data.first_step).split(' · ')[0]}, ${cellName(data.first_divergence)}`;
  return 'Diverged';
}

// A word at the beginning, and no name of code.
const capital = (text) => (/^[a-z]{2,}[ ,:]/.test(text) || /^[a-z]+$/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text);
const tone = data.exit === 0 ? 'good' : data.exit === 1 ? 'bad' : 'unsure';

function fillAnswer(verdict, counts) {
  const host = document.getElementById('answer');
  host.classList.add(tone);
  document.getElementById('verdict').append(el('span', { class: 'hidden' }, `${SIGNS[tone]}: `), verdict);
  if (isRun && data.findings.length > 1) {
    host.insertBefore(el('ol', { class: 'causes' }, data.findings.slice(0, 6).map((one) => el('li', {}, `${one.what}: `, el('b', {}, one.cause), ` (${one.is_undeclared ? 'undeclared' : one.certainty})`)),
      data.findings.length > 6 && el('li', { class: 'more' }, `${data.findings.length - 6} more below`)), document.getElementById('headline'));
  }
  host.append(el('div', { class: 'counts' }, counts.map(([n, text]) => el('span', {}, el('b', {}, n), ` ${text}`))));
}

function runCounts() {
  const counts = [], map = data.inherited;
  const wrong = data.findings.filter((one) => !one.is_undeclared).length;
  if (data.added) counts.push([String(wrong), `guilty ${wrong === 1 ? 'entry' : 'entries'}`]);
  if (data.findings.length > wrong) counts.push([String(data.findings.length - wrong), 'undeclared']);
  if (map && map.of_steps === map.steps.length) {
    let differ = 0, all = 0, unmeasured = 0;
    for (const values of map.values.slice(1)) for (const value of values) {
      if (value === null) continue;
      if (value === -1 || value === -2) { unmeasured++; continue; }
      all++;
      differ += value === -3 || value > map.limit ? 1 : 0;
    }
    counts.push([group(all), `sites compared`], [group(differ), 'of them differ']);
    if (unmeasured) counts.push([group(unmeasured), 'unmeasured']);
  }
  if (data.added) {
    let most = 0;
    data.added.values[0].forEach((value, cell) => { if (value > 0 && !guiltyCells.has(cell)) most = Math.max(most, value); });
    counts.push([`${number(most)} × bound`, data.findings.length ? 'at most in every other operation' : 'at most in any operation']);
  }
  return counts;
}

function buildEntries() {
  if (!data.findings.length && !data.weights.length) return;
  const list = el('ol', { class: 'entries' });
  data.findings.forEach((one, at) => {
    const rows = [
      ['Proof', one.proof], ['Where', one.place && el('code', {}, one.place)],
      ['Weights', one.weights.map((text) => text.replace(/^explained by the weight: /, '')).join('; ')], ['Or', one.also.join('; ')], ['Worst', one.worst], ['Signs', one.signs.join('; ')],
    ].filter(([, text]) => text);
    list.append(el('li', {},
      el('span', { class: 'number', 'aria-hidden': 'true' }, String(at + 1)),
      el('div', {},
        el('div', { class: 'cause' }, capital(one.cause), el('span', { class: `badge ${one.certainty}` }, one.is_undeclared ? 'undeclared' : one.certainty)),
        el('div', { class: 'where' }, one.what)),
      one.cell !== null && el('button', { class: 'action', type: 'button', 'aria-label': `Show the tensor of entry ${at + 1}`, onclick: () => { view.kind = data.added ? 'added' : view.kind; go(one.step, one.cell); } }, 'Show the tensor'),
      el('dl', {}, rows.map(([name, text]) => [el('dt', {}, name), el('dd', {}, text)]))));
  });
  // Weights that explain an entry are named there.
  const weights = data.weights.filter((text) => !data.findings.some((one) => one.weights.some((own) => own.includes(text.split(': ')[0]))));
  const wrong = data.findings.filter((one) => !one.is_undeclared).length;
  const title = wrong === data.findings.length ? 'What is wrong' : wrong ? 'What is wrong, and what is not declared' : 'What is not declared';
  const lead = 'Each operation is computed again in f64 from the engine’s own inputs. One that rounding cannot explain is guilty; proven means that the named mistake gives every element of its result within the bound.';
  section('entries', title, data.findings.length ? lead : null,
    weights.length > 0 && el('ul', { class: 'notes weights' }, weights.map((text) => el('li', {}, `Weights: ${text}`))),
    list,
    data.undeclared && el('p', { class: 'muted' }, `Declare: ${data.undeclared}`),
    data.inherits && el('p', { class: 'muted', style: 'margin-top:10px' }, capital(data.inherits) + '.'));
}

let drawMap = () => {}, drawDetail = () => {}, setKind = () => {}, setStep = () => {};

function buildWhere() {
  if (!data.added && !data.inherited) return;
  view.kind = data.added ? 'added' : 'inherited';
  const mapHost = el('div', { class: 'map-scroll' }), legendHost = el('div'), kindHost = el('div');
  const select = el('select', { id: 'step', onchange: () => { view.step = Number(select.value); redraw(); } });
  const [back, on] = [[-1, '‹', 'Previous step'], [1, '›', 'Next step']].map(([move, text, label]) => el('button', {
    type: 'button', 'aria-label': label, onclick: () => { view.step += move; redraw(); },
  }, text));
  const detail = el('div', { class: 'detail', id: 'detail' });
  const live = el('p', { class: 'hidden', 'aria-live': 'polite' });
  const two = el('div', { class: `two${layers > 34 ? ' wide' : ''}` }, el('div', { class: 'left' }, mapHost, el('div', { class: 'below' }, legendHost)), detail);
  section('where', 'Layers by sites', null,
    el('p', { class: 'lead', id: 'map-lead' }),
    el('div', { class: 'controls' }, kindHost,
      el('span', { class: 'stepper' }, el('label', { for: 'step' }, 'Step'), back, select, on)),
    live, two);
  const map = buildMap(mapHost);
  setKind = choice(kindHost, 'Which error', ['added', 'inherited'].map((kind) => ({
    value: kind, text: KINDS[kind].title, disabled: !data[kind],
    why: data[kind] ? null : kind === 'added' ? 'No operation was replayed' : 'There is no reference to compare with',
  })), view.kind, (kind) => { view.kind = kind; if (!data.same_steps) view.step = -1; redraw(); });
  setStep = () => {
    const steps = data[view.kind].steps;
    view.step = Math.min(view.step, steps.length - 1);
    if (select.dataset.kind !== view.kind) {
      select.dataset.kind = view.kind;
      select.replaceChildren(el('option', { value: -1 }, `worst of all ${plural(data[view.kind].of_steps, 'step')}`), ...steps.map((_, step) => el('option', { value: step }, stepName(view.kind, step))));
    }
    select.value = view.step;
    back.disabled = view.step < 0;
    on.disabled = view.step >= steps.length - 1;
  };
  drawMap = () => {
    const { of_steps: all, steps } = data[view.kind];
    const cut = all > steps.length ? ` The page has the first ${steps.length} of ${all} steps; the worst counts all of them.` : '';
    document.getElementById('map-lead').textContent = (view.kind === 'added'
      ? 'How far each result is from f64 on the engine’s own inputs, in rounding bounds: what the operation itself does wrong.'
      : 'How far each tensor is from the reference’s, in floors (how far rounding alone moves it): including what came in with its inputs.') + cut;
    map.draw();
    legendHost.replaceChildren(legend(view.kind));
  };
  drawDetail = () => buildDetail(detail, live);
}

// The tensor of the cell that is looked at.
let redrawPictures = () => {}, redrawGraph = () => {};
function buildDetail(host, live) {
  const { kind, cell } = view;
  redrawPictures = redrawGraph = () => {};
  if (cell === null) { host.replaceChildren(el('p', { class: 'muted' }, 'Choose a cell to see its tensor.')); return; }
  const step = view.step < 0 ? worstStep(kind, cell) : view.step;
  const site = data.layout.sites[rowOf(cell)];
  const told = (kind) => {
    if (!data[kind] || (!data.same_steps && kind !== view.kind)) return null;
    const value = valueOf(kind, step, cell);
    const bad = isNumber(value) && value > data[kind].limit;
    const words = isNumber(value) ? errorWords(kind, value) : `${value}: ${whyOf(kind, cell)}`;
    return el('span', {}, kind === 'added' ? 'adds ' : 'differs by ', el('span', { class: bad ? 'bad' : '' }, words));
  };
  const guilty = guiltyCells.has(cell);
  const picture = findPicture(kind, step, cell);
  const facts = [el('span', {}, capital(site.what)), told('added'), told('inherited'), guilty && el('span', { class: 'bad' }, 'guilty')].filter(Boolean);
  const line = facts.flatMap((fact, at) => (at ? [' · ', fact] : [fact]));
  const shape = picture ? `${picture.axes.map((axis, i) => `${picture.shape[i]} ${axis}`).join(' × ')}` : site.axes;
  const graph = buildGraph(cell, step);
  const content = [
    el('div', { class: 'title' }, el('h3', {}, cellName(cell)), el('span', { class: 'muted' }, `${stepName(kind, step)}${view.step < 0 && data[kind].of_steps > 1 ? ', its worst' : ''} · ${shape}`)),
    el('p', { class: 'said' }, line),
  ];
  if (graph.length) { content.push(...graph.slice(0, 2)); redrawGraph = graph[2]; }
  const readings = buildReadings(cell, step);
  content.push(...readings.nodes);
  if (picture) {
    const shown = buildPictures(picture);
    redrawPictures = () => { shown.draw(); readings.draw(); };
    const fixed = picture.fixed ? `, ${picture.fixed[0]} ${picture.fixed[1]}, that of the worst element` : '';
    content.push(el('h4', {}, 'The tensor ', el('span', { class: 'muted' }, `${picture.names.filter(Boolean).join(' by ')}${fixed}`)), ...shown.nodes);
    content.push(valueLegend(picture), ...buildShares(picture), ...buildFar(picture));
  } else {
    const value = valueOf(kind, step, cell);
    const why = !isNumber(value) ? 'There is no picture, because this tensor was not measured.'
      : data.left_out ? `This page is limited to ${group(data.most_bytes / 1000)} kB and has no room for this picture. A run with fewer steps (-n 0) does.`
        : 'There is no picture of this tensor.';
    content.push(el('p', { class: 'muted', style: 'margin-top:18px' }, why));
  }
  host.replaceChildren(...content);
  live.textContent = `${cellName(cell)}, ${stepName(kind, step)}, ${errorWords(kind, valueOf(kind, step, cell))}`;
  redrawGraph();
}

function redraw() {
  setKind(view.kind, false);
  setStep();
  drawMap();
  drawDetail();
  try { history.replaceState(null, '', `#map=${view.kind}&step=${view.step}&cell=${view.cell === null ? '' : cellName(view.cell)}`); } catch (error) { void error; }
}

function choose(cell, tell) {
  view.cell = cell;
  redraw();
  const own = document.querySelector(`td[data-cell="${cell}"]`);
  if (tell && own) own.focus({ preventScroll: true });
}

function go(step, cell) {
  const map = data[view.kind];
  view.step = map && step < map.steps.length ? step : -1;
  choose(cell, false);
  document.getElementById('where').scrollIntoView({ block: 'start' });
}

// Where the page begins: as its address says, at the first entry, or at what is furthest off.
function begin() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const named = (name) => { for (let cell = 0; cell < layers * data.layout.sites.length; cell++) if (isThere(cell) && cellName(cell) === name) return cell; return null; };
  const first = data.findings.find((one) => one.cell !== null);
  if (data[asked.get('map')]) view.kind = asked.get('map');
  let [step, cell] = [-1, null];
  if (first && view.kind === 'added') [step, cell] = [first.step, first.cell];
  else if (data.first_divergence !== null) { [step, cell] = [data.first_step, data.first_divergence]; if (data.inherited && data.same_steps === false) view.kind = 'inherited'; }
  else {
    const values = data[view.kind].values[0];
    cell = values.reduce((best, value, at) => (value !== null && (best === null || Math.abs(value) > Math.abs(values[best])) && value >= 0 ? at : best), null);
  }
  view.cell = asked.get('cell') ? named(asked.get('cell')) ?? cell : cell;
  view.step = asked.has('step') ? Number(asked.get('step')) || (asked.get('step') === '0' ? 0 : -1) : step;
  view.step = Math.max(-1, Math.min(view.step, data[view.kind].steps.length - 1));
  redraw();
}

// Both texts, with the first place where they part marked.
function buildText() {
  if (!data.steps.length || !data.steps.some((step) => step.reference || step.engine)) return;
  const marked = (text, other) => {
    [text, other] = [text, other].map((one) => one.replace(/\n/g, '↵'));
    let same = 0;
    while (same < text.length && text[same] === other[same]) same++;
    return same === text.length ? [text] : [text.slice(0, same), el('mark', {}, text.slice(same))];
  };
  const both = data.decoded && el('dl', { class: 'decoded' },
    el('dt', {}, 'Reference'), el('dd', {}, data.decoded[0].replace(/\n/g, '↵')),
    el('dt', {}, 'Engine'), el('dd', {}, marked(data.decoded[1], data.decoded[0])));
  const cell = (said) => (said ? [el('td', { class: 'mono' }, JSON.stringify(said[0])), el('td', { class: 'n' }, said[1].toFixed(2))] : [el('td', {}, '–'), el('td', { class: 'n' }, '–')]);
  const sides = ['reference', 'engine'].filter((side) => data.steps.some((step) => step[side]));
  const rows = data.steps.map((step, at) => el('tr', { class: step.differs ? 'differs' : null },
    el('td', {}, String(at)), el('td', { class: 'n' }, String(step.tokens)), sides.map((side) => cell(step[side])), el('td', {}, step.differs ? 'differs' : '')));
  const heads = [['Step', ''], ['Tokens', 'n'], ...sides.flatMap((side) => [[`${capital(side)} says`, ''], ['lead', 'n']]), ['', '']];
  const table = el('table', { class: 'plain' },
    el('thead', {}, el('tr', {}, heads.map(([title, kind]) => (title ? el('th', { scope: 'col', class: kind }, title) : el('td', {}))))),
    el('tbody', {}, rows));
  const forced = sides.length > 1 ? ' Both sides run the same tokens, so one wrong choice does not spoil the rest.' : '';
  section('text', sides.length > 1 ? 'What each side predicts next' : 'What it predicts next', `The most likely token after each step, and how far its logit leads the second.${forced}`,
    both, el('div', { class: 'scroll tall', tabindex: 0, role: 'group', 'aria-label': 'What each side predicts after each step' }, table));
}

function buildSetup() {
  section('setup', 'What was measured', null,
    el('dl', { class: 'facts' }, data.facts.map(([name, text]) => [el('dt', {}, name), el('dd', {}, text)])),
    data.notes && data.notes.length > 0 && el('ul', { class: 'notes' }, data.notes.map((note) => el('li', {}, note))));
}

function buildCommands() {
  if (!data.commands.length) return;
  section('commands', 'Reproduce', null, data.commands.map(([what, command]) => {
    const text = el('pre', {}, command);
    const copy = el('button', { class: 'action', type: 'button', 'aria-label': `Copy the command: ${what}`, onclick: () => {
      const range = document.createRange();
      range.selectNodeContents(text);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      // A page opened from a file may not write to the clipboard: the text stays selected.
      const done = navigator.clipboard ? navigator.clipboard.writeText(command) : Promise.reject(new Error('no clipboard'));
      done.then(() => { copy.textContent = 'Copied'; }, () => { copy.textContent = 'Selected'; });
    } }, 'Copy');
    return el('div', { class: 'command' }, el('div', { class: 'muted' }, what), el('div', { class: 'line' }, text, copy));
  }));
}

function buildSequences() {
  if (!data.sequences || !data.sequences.length) return;
  document.getElementById('answer').append(el('ul', { class: 'sequences', 'aria-label': 'Each sequence' },
    data.sequences.map(([number, exit, text]) => el('li', {}, el('b', {}, `Sequence ${number}`), exit === 0 ? ' equal: ' : ': ', text))));
}

theme.apply();
choice(document.getElementById('theme'), 'Colours', [{ value: 'auto', text: 'Auto' }, { value: 'light', text: 'Light' }, { value: 'dark', text: 'Dark' }], theme.wanted, (wanted) => theme.set(wanted));
theme.system.addEventListener('change', () => theme.apply());
const fact = (name) => (data.facts.find((fact) => fact[0] === name) || [])[1];
if (isRun) {
  const model = fact('Model'), engine = fact('Engine');
  document.getElementById('subject').textContent = [model && model.split(' (')[0].split('/').pop(), engine].filter(Boolean).join(' · ');
  fillAnswer(runVerdict(), runCounts());
  buildSequences();
  buildEntries();
  buildWhere();
  buildText();
  buildSetup();
  buildCommands();
  if (data.added || data.inherited) begin();
  theme.listeners.push(() => redrawPictures());
  window.addEventListener('resize', () => redrawGraph());
} else {
  buildCheck();
}
document.getElementById('footer').textContent = `firstdiff ${data.firstdiff}. One file; nothing is loaded from the network. Tensors are sampled and the file is limited to ${group(data.most_bytes / 1000)} kB${data.left_out ? `; ${plural(data.left_out, isRun ? 'picture' : 'case’s text')} left out` : ''}.`;
document.documentElement.dataset.ready = 'yes';
