package router

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"sluice/packet"
	"sluice/tables"
)

// logs carries the lines of LOG from the workers to the log: a bounded queue
// with a counter of what did not fit. LOG leaves the packet path here.
type logs struct {
	log   *slog.Logger
	lines chan logLine
	lost  atomic.Uint64
	done  sync.WaitGroup
}

type logLine struct {
	level uint8 // syslog: 0 emerg to 7 debug
	text  string
}

const logQueue = 4096

func newLogs(log *slog.Logger) *logs {
	l := &logs{log: log, lines: make(chan logLine, logQueue)}
	l.done.Add(1)
	go func() {
		defer l.done.Done()
		for line := range l.lines {
			l.log.Log(context.Background(), slogLevel(line.level), line.text)
			if n := l.lost.Swap(0); n > 0 {
				l.log.Warn("LOG: lines lost", "lines", n)
			}
		}
	}()
	return l
}

func (l *logs) add(level uint8, text string) {
	select {
	case l.lines <- logLine{level, text}:
	default:
		l.lost.Add(1)
	}
}

// close ends the queue; the workers have ended before.
func (l *logs) close() {
	close(l.lines)
	l.done.Wait()
}

func slogLevel(syslog uint8) slog.Level {
	switch {
	case syslog <= 3:
		return slog.LevelError
	case syslog == 4:
		return slog.LevelWarn
	case syslog <= 6:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// logPacket is what the LOG target calls on a worker.
func (w *worker) logPacket(prefix string, level, flags uint8, p *packet.Packet) {
	if prefix == DeniedPrefix && w.denied(p) {
		return
	}
	w.logBuf = tables.AppendLog(w.logBuf[:0], prefix, flags, p)
	if len(w.uplinks) > 0 {
		if peer, ok := w.truePeer(p); ok {
			w.logBuf = append(append(w.logBuf, " PEER="...), peer.String()...)
		}
	}
	w.r.logs.add(level, string(w.logBuf))
}

const (
	levelWarning = 4
	levelNotice  = 5
	// logDefault is what Linux logs of packets that no LOG rule asked for: TCP
	// sequence numbers, TCP and IP options, the socket's owner.
	logDefault = 0x0f
)

// logInvalid logs an invalid packet as net.netfilter.nf_conntrack_log_invalid
// has Linux do it. It runs on the packet's worker.
func (r *Router) logInvalid(msg string, p *packet.Packet) {
	r.logs.add(levelNotice, string(tables.AppendLog(nil, fmt.Sprintf("nf_ct_proto_%d: %s ", p.Proto, msg), logDefault, p)))
}

// logFull says, as Linux does and as seldom (net.core.message_burst in
// net.core.message_cost seconds), that connections find no room.
func (r *Router) logFull(now int64) {
	if now < r.fullQuiet.Load() {
		return
	}
	if !r.fullLimit.Allow() {
		r.fullQuiet.Store(now + 10e6) // in a flood, to ask each time costs more than the packet
		return
	}
	r.logs.add(levelWarning, "nf_conntrack: nf_conntrack: table full, dropping packet")
}
