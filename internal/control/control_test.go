package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds waits for things that happen at once unless something is broken.
const patience = 20 * time.Second

func start(t *testing.T, handlers map[string]Handler) *Server {
	t.Helper()
	s, err := Listen(filepath.Join(t.TempDir(), "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	for name, h := range handlers {
		s.Handle(name, h)
	}
	done := make(chan error)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func cat(_ context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	n, err := io.Copy(stdout, stdin)
	fmt.Fprintf(stderr, "%q %d %v", argv, n, err)
	return 42
}

func TestCall(t *testing.T) {
	s := start(t, map[string]Handler{"cat": cat})
	for _, size := range []int{0, 1, maxData - 1, maxData, maxData + 1, 5*maxData + 7} {
		in := bytes.Repeat([]byte("slu\x00ice\xff"), size/8+1)[:size]
		var out, errs bytes.Buffer
		argv := []string{"cat", "", "two words", "\xff\xfe"}
		status, err := Call(within(t), s.Path, argv, bytes.NewReader(in), &out, &errs)
		if err != nil || status != 42 {
			t.Fatalf("%d bytes: status %d, %v", size, status, err)
		}
		if !bytes.Equal(out.Bytes(), in) {
			t.Errorf("%d bytes: got %d back", size, out.Len())
		}
		if want := fmt.Sprintf("%q %d <nil>", argv, size); errs.String() != want {
			t.Errorf("stderr %q, want %q", errs.String(), want)
		}
	}
	if status, err := Call(within(t), s.Path, []string{"cat"}, nil, io.Discard, io.Discard); status != 42 || err != nil {
		t.Errorf("without stdin: %d, %v", status, err)
	}
}

// TestCreate: what a command prints goes to the files that it asks for, which the
// client makes; where that fails, the command is told why.
func TestCreate(t *testing.T) {
	s := start(t, map[string]Handler{"write": func(_ context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
		names, _ := io.ReadAll(stdin)
		for _, name := range strings.Split(string(names), ",") {
			f, err := Create(stdout, name)
			if err != nil {
				fmt.Fprintln(stderr, err)
				continue
			}
			fmt.Fprint(f, "in ", filepath.Base(name))
			f.Close()
		}
		fmt.Fprint(stdout, "after")
		return 0
	}})
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	create := func(name string) (io.WriteCloser, error) { return os.Create(name) }
	names := strings.Join([]string{one, "", filepath.Join(dir, "no", "x"), strings.Repeat("x", maxName+1), two}, ",")
	var out, errs bytes.Buffer
	status, err := CallCreating(within(t), s.Path, []string{"write"}, strings.NewReader(names), &out, &errs, create)
	if want := "no such file or directory\nno such file or directory\nfile name too long\n"; status != 0 || err != nil || out.String() != "after" || errs.String() != want {
		t.Errorf("status %d, %v, %q, %q", status, err, out.String(), errs.String())
	}
	for _, name := range []string{one, two} {
		if b, err := os.ReadFile(name); err != nil || string(b) != "in "+filepath.Base(name) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		os.Remove(name)
	}
	errs.Reset()
	if _, err := Call(within(t), s.Path, []string{"write"}, strings.NewReader(one), io.Discard, &errs); err != nil || errs.String() != "permission denied\n" {
		t.Errorf("a call that makes no files: %v, %q", err, errs.String())
	}
	if _, err := os.Stat(one); err == nil {
		t.Error("and yet it made one")
	}
}

// TestCreateForOthers: another user's router gets the files that the command line
// names, and no others.
func TestCreateForOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	path := fmt.Sprintf("@sluice-test-%d", os.Getpid())
	listening := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0))
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Error(err)
		}
		listening <- l
	}()
	l := <-listening
	if l == nil {
		return
	}
	s := &Server{l: l.(*net.UnixListener), slots: make(chan struct{}, 1), handlers: map[string]Handler{"write": func(_ context.Context, argv []string, _ io.Reader, stdout, stderr io.Writer) int {
		for _, name := range argv[1:] {
			if _, err := Create(stdout, strings.TrimPrefix(name, "not:")); err != nil {
				fmt.Fprint(stderr, err)
				return 1
			}
		}
		return 0
	}}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	go s.Serve()
	defer s.Close()
	made := ""
	create := func(name string) (io.WriteCloser, error) {
		made += name + " "
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	var errs bytes.Buffer
	status, err := CallCreating(within(t), path, []string{"write", "one", "not:two"}, nil, io.Discard, &errs, create)
	if status != 1 || err != nil || errs.String() != "permission denied" || made != "one " {
		t.Errorf("status %d, %v, %q; made %q", status, err, errs.String(), made)
	}
}

func TestStdinIsLeftAloneUnlessRead(t *testing.T) {
	s := start(t, map[string]Handler{"true": func(context.Context, []string, io.Reader, io.Writer, io.Writer) int { return 0 }})
	in := strings.NewReader("untouched")
	if _, err := Call(within(t), s.Path, []string{"true"}, in, io.Discard, io.Discard); err != nil {
		t.Fatal(err)
	}
	if in.Len() != len("untouched") {
		t.Errorf("%d bytes were read for a command that reads none", len("untouched")-in.Len())
	}
}

func TestConcurrent(t *testing.T) {
	var meet sync.WaitGroup
	const n = 20
	meet.Add(n)
	s := start(t, map[string]Handler{"meet": func(_ context.Context, argv []string, _ io.Reader, stdout, _ io.Writer) int {
		meet.Done()
		meet.Wait() // passes only if all n run at once
		io.WriteString(stdout, argv[1])
		return 0
	}})
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			var out bytes.Buffer
			_, err := Call(within(t), s.Path, []string{"meet", fmt.Sprint(i)}, nil, &out, io.Discard)
			if err != nil || out.String() != fmt.Sprint(i) {
				t.Errorf("call %d: %q, %v", i, out.String(), err)
			}
		})
	}
	calls.Wait()
}

func TestClientGoneCancels(t *testing.T) {
	for _, how := range []string{"waits", "reads", "writes"} {
		t.Run(how, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan struct{})
			s := start(t, map[string]Handler{"hang": func(ctx context.Context, _ []string, stdin io.Reader, stdout, _ io.Writer) int {
				defer close(ended)
				close(begun)
				switch how {
				case "waits":
					<-ctx.Done()
				case "reads":
					io.Copy(io.Discard, stdin)
				case "writes":
					for {
						if _, err := stdout.Write(make([]byte, 1000)); err != nil {
							break
						}
					}
				}
				return 0
			}})
			ctx, cancel := context.WithCancel(within(t))
			never, _ := io.Pipe()
			failed := make(chan error)
			go func() {
				_, err := Call(ctx, s.Path, []string{"hang"}, never, io.Discard, io.Discard)
				failed <- err
			}()
			<-begun
			cancel()
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("Call: %v", err)
			}
			select {
			case <-ended:
			case <-within(t).Done():
				t.Fatal("the command goes on without its client")
			}
		})
	}
}

// TestPatience: a client that stops reading what goes on and on is cut off, and
// its place is free again.
func TestPatience(t *testing.T) {
	ended := make(chan error, 1)
	s := start(t, map[string]Handler{
		"flood": func(_ context.Context, _ []string, _ io.Reader, stdout, _ io.Writer) int {
			Patience(stdout, 300*time.Millisecond)
			for {
				if _, err := stdout.Write(make([]byte, maxData)); err != nil {
					ended <- err
					return 0
				}
			}
		},
		"echo": func(_ context.Context, _ []string, _ io.Reader, stdout, _ io.Writer) int {
			io.WriteString(stdout, "here")
			return 0
		},
	})
	c, err := net.Dial("unix", s.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req, _ := encodeRequest([]string{"flood"})
	writeFrame(c, frameRequest, req)
	for range 20 { // it reads, and then no more
		if _, _, err := readFrame(c, nil); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-ended:
		if !errors.Is(err, errGone) {
			t.Error(err)
		}
	case <-within(t).Done():
		t.Fatal("a client that does not read is not cut off")
	}
	for limit := within(t); len(s.slots) > 0; {
		select {
		case <-limit.Done():
			t.Fatal("its place is not free")
		case <-time.After(time.Millisecond):
		}
	}
	var out bytes.Buffer
	if status, err := Call(within(t), s.Path, []string{"echo"}, nil, &out, io.Discard); status != 0 || err != nil || out.String() != "here" {
		t.Errorf("%d %v %q", status, err, out.String())
	}
}

func TestCloseEndsRequests(t *testing.T) {
	s := start(t, map[string]Handler{"flood": func(ctx context.Context, _ []string, _ io.Reader, stdout, _ io.Writer) int {
		for {
			if _, err := stdout.Write(make([]byte, maxData)); err != nil {
				return 0
			}
		}
	}})
	c, err := net.Dial("unix", s.Path) // a client that never reads
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req, _ := encodeRequest([]string{"flood"})
	writeFrame(c, frameRequest, req)
	if _, _, err := readFrame(c, nil); err != nil { // it has begun
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.Close(); close(done) }()
	select {
	case <-done:
	case <-within(t).Done():
		t.Fatal("Close waits for a client that does not read")
	}
	if _, err := os.Lstat(s.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestPanicIsTheRequestsEnd(t *testing.T) {
	s := start(t, map[string]Handler{
		"bad": func(context.Context, []string, io.Reader, io.Writer, io.Writer) int { panic("oh") },
		"cat": cat,
	})
	var errs bytes.Buffer
	status, err := Call(within(t), s.Path, []string{"bad"}, nil, io.Discard, &errs)
	if status != 1 || err != nil || errs.String() != "bad: internal error: oh\n" {
		t.Errorf("status %d, %v, stderr %q", status, err, errs.String())
	}
	if status, err := Call(within(t), s.Path, []string{"cat"}, nil, io.Discard, io.Discard); status != 42 || err != nil {
		t.Errorf("the next request: %d, %v", status, err)
	}
}

func TestRefusals(t *testing.T) {
	s := start(t, map[string]Handler{"cat": cat})
	for _, c := range []struct{ name, send, want string }{
		{"unknown command", frame('R', "\x01dog\x00"), `no command "dog"`},
		{"version", frame('R', "\x09cat\x00"), "protocol version 9"},
		{"empty", frame('R', ""), "empty request"},
		{"no argument", frame('R', "\x01"), "without a whole argument"},
		{"cut argument", frame('R', "\x01cat"), "without a whole argument"},
		{"kind", frame('I', "abc"), `kind 'I' where a request belongs`},
		{"length", "R\xff\xff\xff\xff", "1048576 are the most"},
		{"text", "GET / HTTP/1.1\r\n\r\n", "65536 are the most"},
		{"unasked input", frame('R', "\x01block\x00") + frame('I', "abc"), "nothing asked for"},
		{"unasked answer", frame('R', "\x01block\x00") + frame('A', ""), "an answer that nothing asked for"},
		{"second request", frame('R', "\x01block\x00") + frame('R', "\x01block\x00"), "where standard input belongs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.Handle("block", func(ctx context.Context, _ []string, _ io.Reader, _, _ io.Writer) int { <-ctx.Done(); return 0 })
			conn, err := net.Dial("unix", s.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			io.WriteString(conn, c.send)
			kind, data, err := readFrame(conn, nil)
			if err != nil || kind != frameRefused || !strings.Contains(string(data), c.want) {
				t.Errorf("got %q %q, %v; want a refusal with %q", kind, data, err, c.want)
			}
		})
	}
	_, err := Call(within(t), s.Path, []string{"dog"}, nil, io.Discard, io.Discard)
	if refused := (*RefusedError)(nil); !errors.As(err, &refused) {
		t.Errorf("Call of an unknown command: %v", err)
	}
	if _, err := Call(within(t), s.Path, []string{"cat", "a\x00b"}, nil, io.Discard, io.Discard); err == nil {
		t.Error("an argument with a NUL was sent")
	}
	if _, err := Call(within(t), s.Path, []string{"cat", strings.Repeat("x", maxRequest)}, nil, io.Discard, io.Discard); err == nil {
		t.Error("a request too long was sent")
	}
}

func frame(kind byte, data string) string {
	var b bytes.Buffer
	writeFrame(&b, kind, []byte(data))
	return b.String()
}

func TestPeer(t *testing.T) {
	for _, c := range []struct {
		peer, own uint32
		ok        bool
	}{{1000, 1000, true}, {0, 1000, true}, {0, 0, true}, {1000, 0, false}, {1001, 1000, false}} {
		if err := allowed(c.peer, c.own); (err == nil) != c.ok {
			t.Errorf("peer %d of a router of %d: %v", c.peer, c.own, err)
		}
	}
}

func TestSocketMode(t *testing.T) {
	s := start(t, nil)
	st, err := os.Stat(s.Path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestListenTwice(t *testing.T) {
	s := start(t, nil)
	_, err := Listen(s.Path)
	if live := (*LiveError)(nil); !errors.As(err, &live) {
		t.Fatalf("a second Listen on a live socket: %v", err)
	}
	if _, err := Call(within(t), s.Path, []string{"x"}, nil, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "no command") {
		t.Errorf("the first one does not answer any more: %v", err)
	}
}

func TestListenReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stale(t, path)
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("Listen replaced a file that is no socket")
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file is now %q", b)
	}
	if _, err := Listen(filepath.Join(t.TempDir(), "none", "s.sock")); err == nil {
		t.Error("Listen in a folder that is not there")
	}
}

// stale leaves a socket at path that nobody listens on.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

// FuzzServer sends bytes to a server: it has to answer or hang up, and never panic.
func FuzzServer(f *testing.F) {
	for _, s := range []string{
		"", "R", frame('R', "\x01cat\x00"), frame('R', "\x01cat\x00") + frame('I', "hello") + frame('E', ""),
		frame('R', "\x01cat\x00a\x00") + frame('S', "x"), frame('R', "\x01\x00"), "R\x00\x00\x00\x05\x01ab",
		frame('R', "\x02cat\x00"), "I\x00\x01\x00\x01", frame('F', "no"), frame('R', "\x01cat\x00") + frame('A', ""), frame('R', "\x01dog\x00"),
	} {
		f.Add([]byte(s))
	}
	s := &Server{handlers: map[string]Handler{"cat": cat}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	s.ctx, s.stop = context.WithCancel(context.Background())
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); defer theirs.Close(); s.converse(theirs) }()
		go io.Copy(io.Discard, ours)
		ours.Write(data) // a pipe: returns when the server has read it, or hung up
		ours.Close()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("the server hangs on a client that went away")
		}
	})
}

// FuzzRequest: what decodes encodes to the same.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x01iptables\x00-L\x00"))
	f.Add([]byte("\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		argv, err := decodeRequest(data)
		if err != nil {
			return
		}
		if len(argv) == 0 {
			t.Fatal("no arguments, no error")
		}
		again, err := encodeRequest(argv)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%q became %q, %v", data, again, err)
		}
	})
}

// TestSilentClients: those that only hold a connection keep nobody out.
func TestSilentClients(t *testing.T) {
	s := start(t, map[string]Handler{"cat": cat})
	for range 2*maxSilent + 10 {
		c, err := net.Dial("unix", s.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	var out, errs bytes.Buffer
	if status, err := Call(within(t), s.Path, []string{"cat"}, strings.NewReader("x"), &out, &errs); err != nil || status != 42 || out.String() != "x" {
		t.Errorf("%d %v %q", status, err, out.String())
	}
}
