package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// RefusedError is the router's answer to a request that it did not run.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Call runs argv on the router that listens on the socket at path, and returns
// its exit status. stdin may be nil. A read from stdin may still be under way
// when Call returns.
func Call(ctx context.Context, path string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
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
			_, err = stdout.Write(buf)
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
