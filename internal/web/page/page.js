// The page: the packet flow with live rates, rules, traces, connections, graphs.
import { Flow, svgEl } from './flow.js';
import { Plot } from './plot.js';

const $ = (id) => document.getElementById(id);
let family = '', last = null, before = null, writable = false;

export const el = (name, attrs = {}, ...inside) => {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attrs)) {
    if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
    else if (v !== null && v !== undefined && v !== false) e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...inside);
  return e;
};

// short writes a number as people read it: 1.2k, 35M.
export const short = (n, unit = '') => {
  let i = 0;
  while (n >= 999.5 && i < 5) { n /= 1000; i++; }
  const digits = n >= 99.95 || (i === 0 && Number.isInteger(n)) ? 0 : n >= 10 ? 1 : n > 0 && n < 0.1 ? 2 : 1;
  return n.toFixed(digits) + (unit ? ' ' : '') + ['', 'k', 'M', 'G', 'T', 'P'][i] + unit;
};

// count is so many of something.
export const count = (n, what) => `${short(n)} ${what}${n === 1 ? '' : 's'}`;

const get = async (path, options) => {
  const r = await fetch(path, options);
  if (!r.ok) throw new Error((await r.text()).trim() || r.statusText);
  return r.json();
};
const post = (path, body) => get(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });

const flow = new Flow($('flow'), openRules);

// --- live numbers

function state(kind, text) {
  $('state').className = kind;
  if ($('statetext').textContent !== text) $('statetext').textContent = text;
}

function connect() {
  const stream = new EventSource('api/stream');
  stream.onmessage = (m) => { before = last; last = JSON.parse(m.data); show(); };
  stream.onerror = () => { state('bad', 'the router does not answer'); last = before = null; };
}

function duration(s) {
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']], out = [];
  for (const [size, name] of parts) if (s >= size && out.length < 2) { out.push(Math.floor(s / size) + ' ' + name); s %= size; }
  return out.join(' ') || '0 s';
}

function show() {
  const gone = last.interfaces.filter((i) => i.state !== 'up').map((i) => i.name);
  state(gone.length ? 'bad' : 'ok', gone.length ? gone.join(', ') + ' gone' : 'routing');
  $('who').textContent = `${last.version} · ${(last.config || 'embedded').split('/').pop()} · up ${duration(last.uptime_seconds)} · ${count(last.conntrack.count, 'connection')}`;
  writable = last.writable;
  $('edit').hidden = !writable;
  const names = last.interfaces.map((i) => i.name), choice = $('in');
  if ([...choice.options].slice(1).map((o) => o.value).join() !== names.join()) {
    choice.replaceChildren(el('option', { value: '' }, "its source's route"), ...names.map((n) => el('option', { value: n }, n)));
  }
  flow.update(before, last, family);
  drops();
}

function drops() {
  const old = new Map((before?.drops || []).map((d) => [d.reason, d.packets]));
  const dt = before ? last.uptime_seconds - before.uptime_seconds : 0;
  const rows = (last.drops || []).slice(0, 40).map((d) => {
    const rate = dt > 0 ? Math.max(0, d.packets - (old.get(d.reason) ?? 0)) / dt : 0;
    return el('tr', { class: rate > 0 ? 'busy' : '' }, el('td', { class: 'm' }, d.reason, el('span', { class: 'doc' }, d.doc)),
      el('td', { class: 'n' }, short(d.packets)), el('td', { class: 'n' }, short(rate)));
  });
  $('drops').tBodies[0].replaceChildren(...(rows.length ? rows : [nothing(3, 'Nothing was dropped.')]));
}

function nothing(columns, text) { return el('tr', {}, el('td', { colspan: columns, class: 'none' }, text)); }

for (const b of document.querySelectorAll('[data-family]')) {
  b.onclick = () => {
    family = b.dataset.family;
    for (const o of document.querySelectorAll('[data-family]')) o.setAttribute('aria-pressed', o === b);
    if (last) show();
    if (opened) openRules(opened.table, opened.chain);
  };
}

// --- rules

let opened = null, opener = null, ruleCounts = new Map(), ruleRows = new Map(), ruleTimer = 0;

async function openRules(table, chain, fam) {
  const list = (last?.tables || []).filter((t) => t.name === table && (!family || t.family === family));
  if (!list.length) return;
  const inOrder = list.flatMap((t) => t.chains.map((c) => ({ family: t.family, table, chain: c.name, rules: c.num_rules, builtin: !!c.policy })));
  const fresh = !opened;
  const named = inOrder.filter((c) => c.chain === chain && (!fam || c.family === fam));
  opened = named.find((c) => c.rules > 0) || named[0] || inOrder[0];
  if (fresh) opener = document.activeElement;
  ruleCounts = new Map();
  ruleRows = new Map();
  $('rulesbox').hidden = false;
  $('rulesh').textContent = `Table ${table}`;
  $('chains').replaceChildren(...inOrder.map((c) => el('button', {
    type: 'button', role: 'tab', id: `tab-${c.family}-${c.chain}`, 'aria-controls': 'rulespanel', 'aria-selected': String(c === opened), tabindex: c === opened ? '0' : '-1',
    class: c.rules ? '' : 'empty', onclick: () => openRules(table, c.chain, c.family),
  }, list.length > 1 ? el('span', { class: 'fam' }, c.family === 'ipv6' ? '6' : '4') : '', c.chain, el('span', { class: 'count' }, String(c.rules)))));
  $('rulespanel').setAttribute('aria-labelledby', `tab-${opened.family}-${opened.chain}`);
  if (fresh) { $('rulesbox').scrollIntoView({ block: 'nearest' }); $('rulesh').focus({ preventScroll: true }); }
  await loadRules();
}

// Arrow keys go from chain to chain, as in all tab lists.
$('chains').onkeydown = (e) => {
  const tabs = [...$('chains').children], at = tabs.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: tabs.length - 1 }[e.key];
  if (to === undefined || at < 0) return;
  e.preventDefault();
  const id = tabs[(to + tabs.length) % tabs.length].id;
  document.getElementById(id).click();
  document.getElementById(id).focus();
};

// jump finds the user's chain that a rule leads to.
function jump(text, at) {
  const m = /^(.* -[jg] )(\S+)$/.exec(text);
  const to = m && last?.tables.find((t) => t.name === at.table && t.family === at.family)?.chains.find((c) => c.name === m[2] && !c.policy);
  return to && { before: m[1], chain: m[2] };
}

// ruleText is a rule with the chain that it jumps to as a link.
function ruleText(text, to, at) {
  if (!to) return [text];
  return [to.before, el('button', { type: 'button', class: 'link', onclick: () => { $('rulesh').focus({ preventScroll: true }); openRules(at.table, to.chain, at.family); } }, to.chain)];
}

async function loadRules() {
  clearTimeout(ruleTimer);
  const at = opened;
  if (!at) return;
  try {
    const c = await get('api/rules?' + new URLSearchParams({ family: at.family, table: at.table, chain: at.chain }));
    if (at !== opened) return;
    const now = performance.now(), dt = ruleCounts.time ? (now - ruleCounts.time) / 1000 : 0, counts = new Map();
    counts.time = now;
    // Rows that stay are written anew in place: the focus may be on one.
    const rows = new Map();
    const row = (key, num, r, text) => {
      counts.set(key, r);
      const old = ruleCounts.get(key), per = (k) => (dt && old ? Math.max(0, r[k] - old[k]) / dt : 0);
      const tr = ruleRows.get(key) || el('tr', { 'data-rule': num }, ...[0, 1, 2, 3, 4].map(() => el('td', { class: 'n' })), el('td', { class: 'm' }, ...text()));
      tr.className = per('packets') > 0 ? 'busy' : r.packets > 0 ? '' : 'idle';
      [num, short(r.packets), short(r.bytes, 'B'), short(per('packets')), short(per('bytes'))].forEach((v, i) => { tr.cells[i].textContent = v; });
      rows.set(key, tr);
    };
    (c.rules || []).forEach((r, i) => {
      const to = jump(r.text, at);
      row(`${i + 1} ${r.text} ${to ? 'link' : ''}`, String(i + 1), r, () => ruleText(r.text, to, at));
    });
    if (c.policy) row('policy ' + c.policy, '', c, () => [`policy ${c.policy}`]);
    if (!rows.size) rows.set('', nothing(6, 'No rules.'));
    const list = [...rows.values()], body = $('rules').tBodies[0];
    if (list.length !== body.rows.length || list.some((tr, i) => tr !== body.rows[i])) body.replaceChildren(...list);
    ruleRows = rows;
    ruleCounts = counts;
    $('rulesmore').textContent = c.num_rules > (c.rules || []).length ? `${c.num_rules - (c.rules || []).length} more rules are not shown.` : '';
    if (!focus) ruleCounts = counts;
  } catch (e) { $('rulesmore').textContent = e.message; }
  ruleTimer = setTimeout(loadRules, 1000);
}

$('rulesclose').onclick = () => {
  opened = null;
  clearTimeout(ruleTimer);
  $('rulesbox').hidden = true;
  (opener?.isConnected ? opener : $('flow').querySelector('[tabindex]'))?.focus();
};
$('edit').onsubmit = async (e) => {
  e.preventDefault();
  try {
    const r = await post('api/iptables', { command: $('command').value });
    $('editout').textContent = (r.output || '').trim() || (r.status === 0 ? 'done' : 'exit status ' + r.status);
    loadRules();
  } catch (x) { $('editout').textContent = x.message; }
};

// --- traces

let shown = [], at = { trace: -1, line: 0 }, playing = 0;

$('trace').onsubmit = async (e) => {
  e.preventDefault();
  const packets = $('packet').value.split('\n').map((l) => l.trim()).filter(Boolean);
  if (!packets.length) return say('Write a packet first, for example: tcp 10.0.1.2:4000 > 203.0.113.9:80 S');
  try { showTraces((await post('api/trace', { in: $('in').value, packets })).traces); } catch (x) { say(x.message); }
};
$('live').onclick = async () => {
  say('Waiting for a packet…', 'hint');
  $('live').disabled = true;
  try {
    const r = await get('api/live?' + new URLSearchParams({ match: $('match').value, family }));
    r.traces.length ? showTraces(r.traces) : say('No such packet came within 30 seconds.');
  } catch (x) { say(x.message); } finally { $('live').disabled = false; }
};
$('clear').onclick = () => { showTraces([]); $('packet').focus(); };
$('matchedonly').onchange = () => $('traceout').classList.toggle('matchedonly', $('matchedonly').checked);

function say(text, kind = 'bad') {
  stop();
  shown = [];
  flow.light(null);
  $('stepper').hidden = true;
  $('tracesum').replaceChildren();
  $('traceout').replaceChildren(el('p', { class: kind, role: 'status' }, text));
}

function showTraces(traces) {
  stop();
  shown = traces;
  $('stepper').hidden = !traces.length;
  $('traceout').replaceChildren(...traces.map((t, n) => {
    const lines = t.lines.map((l, i) => el('li', {
      role: 'option', 'aria-selected': 'false', class: `k-${l.kind}`, style: `--depth:${l.depth}`, onclick: () => { stop(); go(n, i); },
    }, ...l.spans.map((s) => (s.class ? el('span', { class: `s-${s.class}` }, s.text) : s.text))));
    return el('ol', { role: 'listbox', tabindex: '0', 'aria-label': `Way of ${t.packet}`, class: t.verdict, onkeydown: (e) => keys(e, n) }, ...lines);
  }));
  $('tracesum').replaceChildren(...traces.map((t, n) => el('button', { type: 'button', class: t.verdict === 'dropped' ? 'bad' : 'good', onclick: () => play(n) }, sentence(t))));
  flow.light(null);
  if (traces.length) play(0);
}

// sentence says how a packet ended.
function sentence(t) {
  const by = t.rule ? (t.rule.num ? `, by rule ${t.rule.num} of ${t.rule.chain} in table ${t.rule.table}` : `, by the policy of ${t.rule.chain} in table ${t.rule.table}`) : '';
  const out = (t.out || []).map((o) => ` out by ${o.interface}`).join(' and');
  return `#${t.seq} ${t.verdict}${t.reason ? ': ' + t.reason : ''}${out}${by}`;
}

// go shows one line of one trace, and the way up to it in the drawing.
function go(n, i) {
  const list = $('traceout').children[n];
  if (!list) return;
  const last = list.children.length - 1;
  [...$('traceout').children].forEach((e, k) => { e.hidden = k !== n; });
  [...$('tracesum').children].forEach((e, k) => { e.setAttribute('aria-pressed', String(k === n)); });
  at = { trace: n, line: Math.min(Math.max(0, i), last) };
  for (const e of $('traceout').querySelectorAll('[aria-selected=true]')) e.setAttribute('aria-selected', 'false');
  const li = list.children[at.line];
  li.setAttribute('aria-selected', 'true');
  if (!li.id) li.id = `line-${n}-${at.line}`;
  list.setAttribute('aria-activedescendant', li.id);
  const top = li.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top; else if (top + li.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + li.offsetHeight - list.clientHeight;
  const t = shown[n], step = at.line === last ? t.steps.length - 1 : t.lines[at.line].step;
  flow.light(t, step);
  $('stepat').textContent = `${at.line + 1} of ${last + 1}`;
}

function play(n, i = 0) {
  stop();
  const lines = shown[n].lines.length;
  if (window.matchMedia('(prefers-reduced-motion: reduce)').matches) return go(n, lines - 1);
  go(n, i);
  $('play').textContent = 'Pause';
  playing = setInterval(() => {
    if (at.line >= shown[n].lines.length - 1) return stop();
    let next = at.line + 1;
    while (next < lines - 1 && shown[n].lines[next].kind === 'miss') next++; // what does not match is only looked at
    go(n, next);
  }, Math.max(40, Math.min(180, 5000 / lines)));
}

function stop() {
  clearInterval(playing);
  playing = 0;
  $('play').textContent = 'Play';
}

$('play').onclick = () => {
  if (playing) return stop();
  const n = Math.max(0, at.trace), done = at.line >= shown[n].lines.length - 1;
  play(n, done ? 0 : at.line);
};
$('back').onclick = () => { stop(); go(at.trace, at.line - 1); };
$('next').onclick = () => { stop(); go(at.trace, at.line + 1); };

function keys(e, n) {
  const line = at.trace === n ? at.line : 0;
  const to = { ArrowDown: line + 1, ArrowUp: line - 1, Home: 0, End: Infinity }[e.key];
  if (to === undefined) return;
  e.preventDefault();
  stop();
  go(n, to);
}

// --- connections

let sort = { by: 'bytes', desc: true }, connTimer = 0;
const visible = new Set();

async function connections() {
  clearTimeout(connTimer);
  if (visible.has('conns') && !document.hidden) {
    try {
      const r = await get('api/connections?' + new URLSearchParams({ q: $('connq').value, sort: sort.by, desc: sort.desc, limit: 100 }));
      $('conncount').textContent = r.matched === r.total ? `${short(r.total)}` : `${short(r.matched)} of ${short(r.total)}`;
      const rows = r.rows.map((c) => el('tr', {}, el('td', {}, c.proto), el('td', {}, c.state), el('td', { class: 'm' }, c.src), el('td', { class: 'm' }, c.dst),
        el('td', { class: 'm' }, c.nat), el('td', { class: 'n' }, c.counted ? short(c.packets) : '–'), el('td', { class: 'n' }, c.counted ? short(c.bytes, 'B') : '–'), el('td', { class: 'n' }, c.timeout + ' s'), el('td', { class: 'n' }, c.mark ? '0x' + c.mark.toString(16) : '')));
      $('conns').tBodies[0].replaceChildren(...(rows.length ? rows : [nothing(9, r.total ? 'None of the connections is like that.' : 'There are no connections.')]));
      $('connmore').textContent = r.matched > rows.length ? `${short(r.matched - rows.length)} more are not shown.` : r.rows.length && !r.rows[0].counted ? 'Packets and bytes are counted while net.netfilter.nf_conntrack_acct is 1.' : '';
    } catch (x) { $('conncount').textContent = x.message; }
  }
  connTimer = setTimeout(connections, 2000);
}
$('connq').oninput = () => { clearTimeout(connTimer); connTimer = setTimeout(connections, 250); };
for (const b of document.querySelectorAll('[data-sort]')) {
  b.onclick = () => {
    sort = { by: b.dataset.sort, desc: sort.by === b.dataset.sort ? !sort.desc : ['packets', 'bytes', 'timeout', 'mark'].includes(b.dataset.sort) };
    for (const th of document.querySelectorAll('#conns th')) th.removeAttribute('aria-sort');
    b.parentElement.setAttribute('aria-sort', sort.desc ? 'descending' : 'ascending');
    connections();
  };
}

// --- graphs

const plots = new Map();

async function graphs() {
  try {
    const h = await get('api/history');
    const rate = (values) => values.slice(1).map((v, i) => Math.max(0, v - values[i]) / Math.max(0.001, h.times[i + 1] - h.times[i]));
    const times = h.times.slice(1), wanted = [
      ...Object.entries(h.interfaces).map(([name, i]) => [name, 'B/s', [{ name: 'in', style: 'rx', values: rate(i.rx_bytes) }, { name: 'out', style: 'tx', values: rate(i.tx_bytes) }]]),
      ['drops', '/s', [{ name: 'packets', style: 'dr', values: rate(h.drops) }]],
    ];
    for (const [title, unit, series] of wanted) {
      if (!plots.has(title)) plots.set(title, new Plot(title, unit, short, el, svgEl));
      plots.get(title).draw(times, series);
    }
    for (const name of [...plots.keys()]) if (!wanted.some(([title]) => title === name)) plots.delete(name);
    const figures = wanted.map(([title]) => plots.get(title).figure);
    if (figures.some((f, i) => $('graphs').children[i] !== f) || $('graphs').children.length !== figures.length) $('graphs').replaceChildren(...figures);
  } catch (x) { $('graphs').textContent = x.message; }
  setTimeout(graphs, 5000);
}

new IntersectionObserver((entries) => {
  for (const e of entries) e.isIntersecting ? visible.add(e.target.id) : visible.delete(e.target.id);
}, { rootMargin: '200px' }).observe($('conns'));

connect();
connections();
graphs();
