// Package control is the router's control socket: a tool sends a command line,
// the router runs it and streams back what it prints and its exit status.
//
// A connection carries one request in frames: a byte that says what it is, a
// big-endian uint32 length, and that many bytes. The client begins with a
// request. Standard input is sent only when the command asks for it, one frame
// for each wish, so a command that reads nothing takes nothing from a terminal,
// and a router never holds more than one frame of it. What a command prints may
// go to a file, which the client makes. The router ends with the exit status, or
// with a refusal in words.
package control

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Kinds of frames.
const (
	frameRequest byte = 'R' // to the router: version byte, then the arguments, each with a NUL behind it
	frameInput   byte = 'I' // to the router: standard input
	frameEnd     byte = 'E' // to the router: standard input has ended
	frameOpened  byte = 'A' // to the router: the answer to frameFile: nothing, or why it cannot be
	frameWant    byte = 'W' // to the client: the command waits for standard input
	frameFile    byte = 'N' // to the client: the file that standard output goes to, made anew; no name: not to a file again
	frameOut     byte = 'O' // to the client: standard output
	frameErr     byte = 'X' // to the client: standard error
	frameExit    byte = 'S' // to the client: exit status, one byte; the last frame
	frameRefused byte = 'F' // to the client: why nothing was done; the last frame
)

const (
	version    = 1
	maxRequest = 1 << 20  // bytes of a request: as much as a command line of the kernel usually may have
	maxData    = 64 << 10 // bytes of any other frame
	maxName    = 4095     // bytes of a file's name, as PATH_MAX has it
)

// errFrame is what is wrong with a frame's form.
type errFrame string

func (e errFrame) Error() string { return string(e) }

// readFrame reads a frame into buf (grown as needed).
func readFrame(r io.Reader, buf []byte) (kind byte, data []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, buf, err
	}
	n, most := binary.BigEndian.Uint32(head[1:]), uint32(maxData)
	if head[0] == frameRequest {
		most = maxRequest
	}
	if n > most {
		return 0, buf, errFrame(fmt.Sprintf("a frame of kind %q with %d bytes: %d are the most", head[0], n, most))
	}
	if uint32(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, buf, err
	}
	return head[0], buf, nil
}

// writeFrame writes a frame with one Write.
func writeFrame(w io.Writer, kind byte, data []byte) error {
	frame := make([]byte, 5, 5+len(data))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(data)))
	_, err := w.Write(append(frame, data...))
	return err
}

// encodeRequest is a request frame's data.
func encodeRequest(argv []string) ([]byte, error) {
	out := []byte{version}
	for _, a := range argv {
		if strings.IndexByte(a, 0) >= 0 {
			return nil, fmt.Errorf("argument %q contains a NUL", a)
		}
		out = append(append(out, a...), 0)
	}
	if len(out) > maxRequest {
		return nil, fmt.Errorf("the command line has %d bytes, and %d are the most", len(out), maxRequest)
	}
	return out, nil
}

// decodeRequest undoes encodeRequest.
func decodeRequest(data []byte) ([]string, error) {
	if len(data) == 0 {
		return nil, errFrame("an empty request")
	}
	if data[0] != version {
		return nil, errFrame(fmt.Sprintf("protocol version %d, and this router speaks %d: use the sluice binary that the router runs", data[0], version))
	}
	data = data[1:]
	if len(data) == 0 || data[len(data)-1] != 0 {
		return nil, errFrame("a request without a whole argument")
	}
	parts := bytes.Split(data[:len(data)-1], []byte{0})
	argv := make([]string, len(parts))
	for i, p := range parts {
		argv[i] = string(p)
	}
	return argv, nil
}
