package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// RefusedError is the router's answer to a request that it did not run.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Call runs argv on the router that listens on the socket at path, and returns
// its exit status. stdin may be nil. A read from stdin may still be under way
// when Call returns.
func Call(ctx context.Context, path string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	return CallCreating(ctx, path, argv, stdin, stdout, stderr, nil)
}

// CallCreating is Call for a command that may write files: create makes one, for
// what the command prints from then on. A router of another user, who is not
// root, gets only files that argv names.
func CallCreating(ctx context.Context, path string, argv []string, stdin io.Reader, stdout, stderr io.Writer, create func(name string) (io.WriteCloser, error)) (int, error) {
	request, err := encodeRequest(argv)
	if err != nil {
		return 0, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return 0, fmt.Errorf("no sluice answers on %s: %w", path, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()

	var mu sync.Mutex // the request and standard input share the way out
	send := func(kind byte, data []byte) {
		mu.Lock()
		defer mu.Unlock()
		// a router that refuses does not read on; its reason is still to be had
		_ = writeFrame(c, kind, data)
	}
	send(frameRequest, request)
	var file io.WriteCloser
	shut := func() (err error) {
		if file != nil {
			err = file.Close()
			file = nil
		}
		return err
	}
	defer shut()
	var buf []byte
	for {
		var kind byte
		if kind, buf, err = readFrame(c, buf); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("it went away before the command was done")
			}
			return 0, fmt.Errorf("the sluice on %s: %w", path, err)
		}
		switch kind {
		case frameOut:
			if file != nil {
				_, err = file.Write(buf)
			} else {
				_, err = stdout.Write(buf)
			}
		case frameFile:
			if err = shut(); err != nil || len(buf) == 0 {
				break
			}
			why := os.ErrPermission
			if name := string(buf); create != nil && (slices.Contains(argv, name) || trusted(c)) {
				var f io.WriteCloser
				if f, why = create(name); why == nil {
					file = f
				}
			}
			send(frameOpened, []byte(reason(why)))
		case frameErr:
			_, err = stderr.Write(buf)
		case frameWant:
			go feed(stdin, send)
		case frameExit:
			if len(buf) != 1 {
				return 0, fmt.Errorf("the sluice on %s: an exit status of %d bytes", path, len(buf))
			}
			return int(buf[0]), nil
		case frameRefused:
			return 0, &RefusedError{string(buf)}
		default:
			return 0, fmt.Errorf("the sluice on %s: a frame of unknown kind %q", path, kind)
		}
		if err != nil {
			return 0, err
		}
	}
}

// reason is an error for the other side; "": none.
func reason(err error) string {
	var pe *os.PathError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pe):
		return pe.Err.Error()
	}
	return err.Error()
}

// trusted reports whether the router has the rights of this process anyway.
func trusted(c net.Conn) bool {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	yes := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		yes = err == nil && (cred.Uid == 0 || cred.Uid == uint32(os.Geteuid()))
	})
	return yes && err == nil
}

// feed answers one wish for standard input.
func feed(stdin io.Reader, send func(byte, []byte)) {
	if stdin != nil {
		buf := make([]byte, maxData)
		for {
			n, err := stdin.Read(buf)
			if n > 0 {
				send(frameInput, buf[:n])
				return
			}
			if err != nil {
				break
			}
		}
	}
	send(frameEnd, nil)
}
