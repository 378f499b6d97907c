package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// starts measures how long it takes to run `true` in fresh namespaces with the
// path's network, from the first program's start to the last one's end; median
// of several, in milliseconds. The programs start on the path's host.
func (p *Path) starts(n int) (float64, error) {
	var all []float64
	for range n {
		var took time.Duration
		err := p.server.h.Do(func() (err error) {
			t := time.Now()
			err = p.start()
			took = time.Since(t)
			return err
		})
		if err != nil {
			return 0, err
		}
		all = append(all, float64(took.Nanoseconds())/1e6)
	}
	sort.Float64s(all)
	return all[len(all)/2], nil
}

// command is a program that runs true in namespaces of its own making.
func command(argv ...string) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		return finish(exec.CommandContext(ctx, argv[0], argv[1:]...))
	}
}

const startLimit = 20 * time.Second

// beside is a program that gives the namespaces of a process a network, as
// container engines start it; {pid} in its arguments is the process. It is ready
// when it has written to descriptor 3, or printed "ready"; then inside runs in there.
func beside(inside string, argv ...string) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		held := exec.CommandContext(ctx, "unshare", "-Urn", "sh", "-c", "echo; read go; "+inside)
		in, err := held.StdinPipe()
		if err != nil {
			return err
		}
		out, err := held.StdoutPipe()
		if err != nil {
			return err
		}
		var said bytes.Buffer
		held.Stderr = &said
		if err := held.Start(); err != nil {
			return err
		}
		defer func() {
			held.Process.Kill()
			held.Wait()
		}()
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return err
		}
		args := make([]string, len(argv))
		for i, a := range argv {
			args[i] = strings.ReplaceAll(a, "{pid}", strconv.Itoa(held.Process.Pid))
		}
		ready, tell, err := os.Pipe()
		if err != nil {
			return err
		}
		defer ready.Close()
		c := exec.CommandContext(ctx, args[0], args[1:]...)
		c.ExtraFiles = []*os.File{tell}
		c.Stdout = tell
		err = c.Start()
		tell.Close()
		if err != nil {
			return err
		}
		defer func() {
			c.Process.Signal(syscall.SIGTERM)
			c.Wait()
		}()
		if _, err := io.ReadAtLeast(ready, make([]byte, 1), 1); err != nil {
			return fmt.Errorf("%s: it was never ready: %w", argv[0], err)
		}
		if _, err := io.WriteString(in, "go\n"); err != nil {
			return err
		}
		if err := held.Wait(); err != nil {
			return errors.Join(err, errors.New(said.String()))
		}
		return nil
	}
}

// peak is the most memory that a process has had resident, and what it has now
// beside its files' pages; in megabytes.
func peak(pid int) (most, private float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if len(w) != 3 {
			continue
		}
		n, _ := strconv.ParseFloat(w[1], 64)
		switch w[0] {
		case "VmHWM:":
			most = n / 1024
		case "RssAnon:":
			private = n / 1024
		}
	}
	return most, private, nil
}
