package conformance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/internal/conntrackcmd"
)

// asks: the step is a command whose words are compared, or a listener's.
func (st *step) asks() bool { return st.verb == "ask" || st.verb == "watch" || st.verb == "hear" }

// sends: the step has frames, and a number.
func (st *step) sends() bool { return st.verb == "in" || st.verb == "send" }

// said is what a command printed, a line each, as both sides have it.
func said(out, errs string, code int) (lines []string) {
	for _, l := range strings.Split(out, "\n") {
		if l != "" {
			lines = append(lines, evened(l))
		}
	}
	for _, l := range strings.Split(errs, "\n") {
		if l != "" {
			lines = append(lines, "! "+evened(l))
		}
	}
	if code != 0 {
		lines = append(lines, fmt.Sprint("status ", code))
	}
	return lines
}

var (
	randomWords = regexp.MustCompile(`(\bid=|portid=|<id>|<portid>|delta-time=|<deltatime>|<start>|<stop>)\d+`)
	useWords    = regexp.MustCompile(` use=\d+|<use>\d+</use>`)
	stampWords  = regexp.MustCompile(`\[(start=|stop=)[^\]]*\]|^\[\d+\s*\.\d+\s*\]|<when>.*</when>`)
	secondWords = regexp.MustCompile(`(^(?:\[\.\]\t)?(?:\s*\[[A-Z#]+\]\s+)?(?:[a-z0-9]+ +\d+ )?(?:[a-z]+ +\d+ )?|<timeout>|-t )(\d+)( |<)`)
)

// evened makes a line alike on both sides: what is random has no value, and the
// seconds that are left, of which one or two may be gone, are rounded up to tens.
func evened(l string) string {
	l = stampWords.ReplaceAllStringFunc(l, func(w string) string {
		return strings.Map(func(c rune) rune {
			if c >= '0' && c <= '9' {
				return -1
			}
			return c
		}, regexp.MustCompile(`=[^\]]*`).ReplaceAllString(strings.ReplaceAll(w, " ", ""), "="))
	})
	l = strings.TrimSuffix(l, " progname=conntrack") // if it has not ended yet
	l = useWords.ReplaceAllString(l, "")
	l = randomWords.ReplaceAllString(l, "$1#")
	return secondWords.ReplaceAllStringFunc(l, func(w string) string {
		m := secondWords.FindStringSubmatch(w)
		n, _ := strconv.Atoi(m[2])
		return m[1] + strconv.Itoa((n+9)/10*10) + m[3]
	})
}

// listener is a command that goes on until it is ended.
type listener struct {
	out, errs lockedBuffer
	end       func() int
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// asked carries a step of the three verbs out; run and listen are the side's.
func asked(st *step, listeners *[]*listener, run func(w []string) []string, listen func(w []string) *listener) []string {
	w := strings.Fields(st.text)
	switch st.verb {
	case "ask":
		return run(w)
	case "watch":
		*listeners = append(*listeners, listen(w))
	case "hear": // the oldest
		l := (*listeners)[0]
		*listeners = (*listeners)[1:]
		code := l.end()
		return said(l.out.String(), l.errs.String(), code)
	}
	return nil
}

func (x *kernelSide) ask(st *step) []string {
	x.t.Helper()
	return asked(st, &x.listeners, func(w []string) []string {
		var out, errs bytes.Buffer
		c := x.command(w...)
		c.Stdout, c.Stderr = &out, &errs
		c.Run()
		return said(out.String(), errs.String(), c.ProcessState.ExitCode())
	}, func(w []string) *listener {
		l := &listener{}
		c := x.command(w...)
		c.Stdout, c.Stderr = &l.out, &l.errs
		if err := c.Start(); err != nil {
			x.t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			c.Wait()
			close(ended)
		}()
		x.t.Cleanup(func() {
			c.Process.Kill()
			<-ended
		})
		until(x.t, c.Args, ended, func() bool { return quietSocket(c.Process.Pid) })
		l.end = func() int {
			until(x.t, c.Args, ended, func() bool { return quietSocket(c.Process.Pid) })
			c.Process.Signal(os.Interrupt)
			<-ended
			return c.ProcessState.ExitCode()
		}
		return l
	})
}

// until waits for something that a program is about to do, or for its end.
func until(t testing.TB, what []string, ended <-chan struct{}, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		select {
		case <-ended:
			return
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v is not ready", what)
		}
	}
}

// quietSocket: the process listens to netfilter's events and has read, and
// printed, all there are.
func quietSocket(pid int) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	fds, _ := filepath.Glob(proc + "/fd/*")
	var sockets []string
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		sockets = append(sockets, strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]"))
	}
	all, _ := os.ReadFile(proc + "/net/netlink")
	for _, l := range strings.Split(string(all), "\n") {
		w := strings.Fields(l) // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if len(w) < 10 || w[1] != "12" || strings.Trim(w[3], "0") == "" || !slices.Contains(sockets, w[9]) {
			continue
		}
		stat, _ := os.ReadFile(proc + "/stat")
		_, state, _ := strings.Cut(string(stat), ") ")
		return w[4] == "0" && strings.HasPrefix(state, "S")
	}
	return false
}

func (x *ourSide) ask(st *step) []string {
	x.t.Helper()
	return asked(st, &x.listeners, func(w []string) []string {
		var out, errs bytes.Buffer
		code := conntrackcmd.Run(x.r.Conntrack(), w[1:], nil, &out, &errs, nil)
		return said(out.String(), errs.String(), code)
	}, func(w []string) *listener {
		l := &listener{}
		stop, ended := make(chan struct{}), make(chan struct{})
		code, n := 0, x.r.Conntrack().Listeners()
		go func() {
			code = conntrackcmd.Run(x.r.Conntrack(), w[1:], nil, &l.out, &l.errs, stop)
			close(ended)
		}()
		until(x.t, w, ended, func() bool { return x.r.Conntrack().Listeners() > n })
		l.end = sync.OnceValue(func() int {
			close(stop)
			<-ended
			return code
		})
		x.t.Cleanup(func() { l.end() })
		return l
	})
}
