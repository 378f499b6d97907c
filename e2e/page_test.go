package e2e

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"sluice/e2e/lab"
)

// browser is a headless Chromium with the router's page. It notes what a page
// should not do: errors on the console, requests to other hosts.
type browser struct {
	t   *testing.T
	ctx context.Context
	mu  sync.Mutex
	bad []string
}

func openPage(t *testing.T, l *lab.Lab, addr string) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is missing (apt install chromium)")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.UserDataDir(filepath.Join(l.Dir, "chromium")), chromedp.WindowSize(1360, 900), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("no-proxy-server", true), chromedp.WSURLReadTimeout(60*time.Second))
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(func() { chromedp.Cancel(ctx); cancel() })
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Do(ctx); err != nil { // starts it
		t.Fatal(err)
	}
	err = chromedp.Listen(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := ev.(type) {
		case *runtime.EventExceptionThrown:
			b.bad = append(b.bad, "exception: "+e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
				b.bad = append(b.bad, fmt.Sprintf("console: %s", e.Args[0].Value))
			}
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError {
				b.bad = append(b.bad, "log: "+e.Entry.Text+" "+e.Entry.URL)
			}
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(e.Request.URL); err != nil || u.Host != addr && u.Scheme != "data" {
				b.bad = append(b.bad, "a request to "+e.Request.URL)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{second(chromedp.Call(ctx, log.Enable, cdp.Empty{})), second(chromedp.Call(ctx, runtime.Enable, cdp.Empty{})), second(chromedp.Call(ctx, network.Enable, network.EnableParams{}))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b.run(chromedp.Navigate("http://" + addr + "/"))
	return b
}

func second[T any](_ T, err error) error { return err }

// run does something in the page.
func (b *browser) run(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
		b.t.Fatalf("in the page: %v\n%s\nIt says:\n%s", err, strings.Join(b.bad, "\n"), text)
	}
}

// text is what a script gives.
func (b *browser) text(script string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	s, err := chromedp.Run(ctx, chromedp.Evaluate[string]("String("+script+")"))
	if err != nil {
		b.t.Fatalf("in the page: %s: %v", script, err)
	}
	return s
}

// number reads the first number of a text such as "1.2k/s".
func number(s string) float64 {
	s = strings.TrimSpace(s)
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if end < 0 {
		end = len(s)
	}
	f, err := strconv.ParseFloat(s[:end], 64)
	if err != nil {
		return 0
	}
	switch rest := s[end:]; {
	case strings.HasPrefix(rest, "k"), strings.HasPrefix(rest, " k"):
		f *= 1e3
	case strings.HasPrefix(rest, "M"), strings.HasPrefix(rest, " M"):
		f *= 1e6
	}
	return f
}

// shot keeps a picture where SLUICE_SCREENSHOTS says.
func (b *browser) shot(name string) {
	dir := os.Getenv("SLUICE_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), png, 0o644); err != nil {
		b.t.Error(err)
	}
}

// TestPage drives the page in a real browser: rates that rise, a packet whose
// path lights up as `sluice trace` prints it, counters, connections.
func TestPage(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	l.Need("iperf3", "ping")
	client, server := l.NS("client"), l.NS("server")
	addr := freePort(t)
	token := l.File("token", "a token for this test alone\n")
	r := l.Sluice(pair + metricRules + fmt.Sprintf("[control]\nsocket = \"{dir}/sluice.sock\"\nhttp = %q\ntoken_file = %q\n[sysctl]\n\"net.netfilter.nf_conntrack_acct\" = 1\n", addr, token))
	b := openPage(t, l, addr)
	b.run(chromedp.WaitVisible(`#state.ok`))
	until := func(what, script string) {
		t.Helper()
		l.Eventually(6*deadline, what, func() bool { return b.text("!!("+script+")") == "true" })
	}
	rate := func(node string) float64 {
		return number(b.text(`document.querySelector('[data-node="` + node + `"] .rate').textContent`))
	}

	// Rates rise while iperf3 runs.
	server.Start("iperf3", "-s")
	l.Eventually(deadline, "the iperf3 server", func() bool {
		out, _ := server.Run("ss", "-ltn")
		return strings.Contains(out, ":5201")
	})
	before := rate("FORWARD")
	client.Start("iperf3", "-c", "198.51.100.2", "-t", "1000", "-b", "20M")
	client.Start("ping", "-n", "-q", "-i", "0.1", "10.0.1.1")
	client.Start("sh", "-c", "while echo x; do sleep 0.1; done | nc -u 198.51.100.2 9")
	for _, node := range []string{"in", "PREROUTING", "FORWARD", "POSTROUTING", "out", "INPUT", "local", "OUTPUT"} {
		l.Eventually(2*deadline, "the rate of "+node, func() bool { return rate(node) > before+1 })
	}
	until("arrows that move", `document.querySelectorAll('path.edge.on').length >= 10`)
	for what, script := range map[string]string{
		"rates on every box and arrow": `[...document.querySelectorAll('.node > .rate[text-anchor=middle]')].every(e => /^[\d.]+k?M?\/s · [\d.]+ k?M?B\/s$/.test(e.textContent)) && document.querySelectorAll('.node').length === 10 &&
			[...document.querySelectorAll('svg > text.rate')].filter(e => /\/s.*B\/s$/.test(e.textContent)).length === 10`,
		"rates on a table":     `/\/s · .*B\/s$/.test(document.querySelector('[data-chip="FORWARD/filter"] .rate').textContent)`,
		"what a box drops":     `[...document.querySelectorAll('[data-node="FORWARD"] .drop')].some(e => e.textContent.includes('filter.FORWARD.rule'))`,
		"a graph of each kind": `[...document.querySelectorAll('#graphs figure strong')].map(e => e.textContent).join() === 'lan0,wan0,drops' && document.querySelectorAll('#graphs path.line').length === 5`,
	} {
		until(what, script)
	}
	until("a drop", `[...document.querySelectorAll('#drops td.m')].some(e => e.firstChild.textContent === 'filter.FORWARD.rule')`)

	// A rule's counter.
	b.run(chromedp.Click(`[data-chip="FORWARD/filter"]`), chromedp.WaitVisible(`#rules tbody tr`))
	rules := func() string { return b.text(`document.querySelector('#rules').innerText`) }
	until("the rules", `document.querySelectorAll('#rules tbody tr').length === 4`)
	if s := rules(); !strings.Contains(s, "--comment known -j ACCEPT") || !strings.Contains(s, "policy DROP") {
		t.Errorf("the rules:\n%s", s)
	}
	n := `document.querySelector('#rules tbody tr:nth-child(2) td:nth-child(2)').textContent`
	first := number(b.text(n))
	l.Eventually(2*deadline, "the counter of the rule that drops", func() bool { return number(b.text(n)) > first })

	// Connections: found, with their NAT.
	b.run(chromedp.ScrollIntoView(`#connq`))
	until("connections", `document.querySelectorAll('#conns tbody tr').length > 0`)
	b.run(chromedp.SendKeys(`#connq`, "tcp :5201"))
	until("the search", `document.querySelectorAll('#conns tbody tr').length >= 1 && [...document.querySelectorAll('#conns tbody tr')].every(e => e.innerText.includes(':5201'))`)
	if s := b.text(`document.querySelector('#conns tbody').innerText`); !strings.Contains(s, "ESTABLISHED") || !strings.Contains(s, "source → 198.51.100.1:") {
		t.Errorf("the connections:\n%s", s)
	}

	// A typed packet takes the way that `sluice trace` prints, to the letter.
	const packet = "tcp 10.0.1.2:4000 > 198.51.100.2:80 S"
	lit := func() string {
		return b.text(`[...document.querySelectorAll('[data-node].lit')].map(e => e.dataset.node).sort().join()`)
	}
	b.run(chromedp.SetValue(`#packet`, packet+"\nreply\nudp 10.0.1.2:4000 > 198.51.100.2:9"))
	b.run(chromedp.Click(`#trace button.go`))
	until("the way", `document.querySelector('[data-node="out"].lit')`)
	if s := lit(); s != "FORWARD,POSTROUTING,PREROUTING,in,out,route" {
		t.Errorf("lit: %s", s)
	}
	shown := b.text(`[...document.querySelectorAll('#traceout ol')].map(o => [...o.children].map(e => e.textContent).join('\n')).join('\n')`)
	told := r.Must("trace", "-c", r.Config, packet, "reply", "udp 10.0.1.2:4000 > 198.51.100.2:9")
	var plain []string
	for _, l := range strings.Split(told, "\n") {
		if l = strings.TrimLeft(l, " "); l != "" {
			plain = append(plain, l)
		}
	}
	if want := strings.Join(plain, "\n"); shown != want || !strings.Contains(want, "MASQUERADE") {
		t.Errorf("the page says\n%s\nand sluice trace\n%s", shown, want)
	}
	b.run(chromedp.EmulateViewport(1360, 1330))
	b.text(`window.scrollTo(0, 0)`)
	b.shot("page.png")
	b.text(`(document.querySelector('#connq').value = '', document.querySelector('#connq').dispatchEvent(new Event('input')))`)
	b.text(`document.querySelector('#rulesbox').scrollIntoView()`)
	until("all connections", `document.querySelectorAll('#conns tbody tr').length > 2`)
	if os.Getenv("SLUICE_SCREENSHOTS") != "" {
		until("a minute of graphs", `document.querySelector('#graphs path.line').getAttribute('d').split('L').length > 4`)
	}
	b.shot("page-rules.png")
	b.run(chromedp.EmulateViewport(1360, 900))
	// Step by step, by keyboard too.
	b.run(chromedp.Focus(`#traceout ol`), chromedp.KeyEvent(kb.Home))
	until("the beginning", `document.querySelector('#traceout li[aria-selected=true]').textContent.startsWith('#1 tcp')`)
	if s := lit(); s != "in" {
		t.Errorf("at the beginning lit: %s", s)
	}
	for range 3 {
		b.run(chromedp.KeyEvent(kb.ArrowDown))
	}
	if s := lit() + b.text(`document.querySelector('.now').dataset.chip`); s != "PREROUTING,inPREROUTING/conntrack" {
		t.Errorf("three steps on lit: %s", s)
	}
	b.run(chromedp.Click(`#tracesum button:nth-child(3)`))
	until("where the third is dropped", `document.querySelector('[data-node="FORWARD"].dead') && !document.querySelector('[data-node="POSTROUTING"].lit')`)
	b.run(chromedp.Click(`#clear`))
	until("no marks", `!document.querySelector('.lit, .dead, .now, #traceout ol')`)
	b.run(chromedp.SetValue(`#packet`, "tcp 10.0.1.2:4000 >"), chromedp.Click(`#trace button.go`), chromedp.WaitVisible(`#traceout p.bad`))

	// One of the real traffic.
	b.run(chromedp.SetValue(`#match`, "-p icmp"), chromedp.Click(`#live`), chromedp.WaitVisible(`#traceout ol li`))
	if s := b.text(`document.querySelector('#traceout').innerText`); !strings.Contains(s, "icmp 10.0.1.") {
		t.Errorf("the live packet:\n%s", s)
	}

	// With the token it changes rules, without it does not.
	if b.text(`document.querySelector('#edit').hidden`) != "true" {
		t.Error("rules can be changed without a token")
	}
	b.run(chromedp.Navigate("http://"+addr+"/login?token=a%20token%20for%20this%20test%20alone"), chromedp.WaitVisible(`#state.ok`), chromedp.Click(`[data-chip="FORWARD/filter"]`), chromedp.WaitVisible(`#edit`),
		chromedp.SetValue(`#command`, "iptables -I FORWARD -s 192.0.2.7 -j DROP"), chromedp.Click(`#edit button`))
	until("the new rule", `document.querySelector('#rules').innerText.includes('-s 192.0.2.7/32 -j DROP')`)
	if s := r.Must("iptables", "-S", "FORWARD", "1"); s != "-A FORWARD -s 192.0.2.7/32 -j DROP\n" {
		t.Errorf("%q", s)
	}

	// A jump leads to its chain.
	r.Must("iptables", "-N", "side")
	r.Must("iptables", "-A", "side", "-p", "gre", "-j", "DROP")
	r.Must("iptables", "-A", "FORWARD", "-p", "gre", "-j", "side")
	until("the jump", `document.querySelector('#rules button.link')?.textContent === 'side'`)
	b.run(chromedp.Click(`#rules button.link`))
	until("the chain", `document.querySelector('#chains [aria-selected=true]').textContent.includes('side') && document.querySelector('#rules').innerText.includes('-A side -p gre -j DROP')`)
	b.run(chromedp.Click(`[data-chip="FORWARD/filter"]`))

	// On a phone, and in the dark.
	b.run(chromedp.EmulateViewport(390, 844))
	until("the narrow drawing", `document.querySelector('#flow svg').viewBox.baseVal.width < 500`)
	if s := b.text(`document.documentElement.scrollWidth`); number(s) > 391 {
		t.Errorf("the page is %s wide on a phone of 390", s)
	}
	if err := second(chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})); err != nil {
		t.Fatal(err)
	}
	until("rates on the phone", `!document.querySelector('[data-node="FORWARD"] .rate').textContent.startsWith('0/s')`)
	b.text(`window.scrollTo(0, 0)`)
	b.shot("page-phone.png")
	b.run(chromedp.EmulateViewport(1360, 900))
	until("the wide drawing", `document.querySelector('#flow svg').viewBox.baseVal.width > 1000`)
	until("rates in the wide drawing", `document.querySelectorAll('path.edge.on').length >= 6`)
	b.text(`window.scrollTo(0, 0)`)
	b.shot("page-dark.png")

	// By keyboard alone.
	b.run(chromedp.Click(`#rulesclose`), chromedp.Focus(`[data-chip="POSTROUTING/nat"]`), chromedp.KeyEvent("\r"), chromedp.WaitVisible(`#rules tbody tr`))
	until("the table that the keyboard opened", `document.querySelector('#rules').innerText.includes('MASQUERADE')`)
	b.run(chromedp.Focus(`#chains [aria-selected=true]`), chromedp.KeyEvent(kb.Home))
	until("the first chain", `document.activeElement.textContent.includes('PREROUTING') && document.activeElement.getAttribute('aria-selected') === 'true'`)
	b.run(chromedp.Focus(`#rulesclose`), chromedp.KeyEvent("\r"))
	until("the focus where it came from", `document.activeElement.dataset.chip === 'POSTROUTING/nat'`)
	// What a screen reader is told.
	for what, script := range map[string]string{
		"names":                             `[...document.querySelectorAll('button, input, select, textarea, [role=button], [role=img]')].filter(e => e.checkVisibility()).every(e => (e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent).trim())`,
		"landmarks":                         `document.querySelectorAll('main > section').length === [...document.querySelectorAll('main > section')].filter(e => document.getElementById(e.getAttribute('aria-labelledby'))).length`,
		"what an arrow key says of a graph": `document.querySelector('#graphs svg').getAttribute('aria-label').includes('at most')`,
	} {
		until(what, script)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	bad := b.bad[:0]
	for _, s := range b.bad {
		if !strings.Contains(s, "400") || !strings.Contains(s, "/api/trace") { // the packet that could not be read
			bad = append(bad, s)
		}
	}
	if len(bad) > 0 {
		t.Errorf("the page:\n%s", strings.Join(bad, "\n"))
	}
}
