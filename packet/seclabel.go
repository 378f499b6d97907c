package packet

import (
	"sync"
	"sync/atomic"
)

// secLabels are the security labels that have been named so far; the index is
// the label. Entries never change, so a packet path may read without a lock.
var secLabels struct {
	mu    sync.Mutex
	texts atomic.Pointer[[]string]
}

// SecLabel gives the number that stands for a security label in Packet.SecMark
// and in a connection's security mark; it is never 0, and the same for the
// same text as long as the process lives. It may be called from any goroutine;
// labels come from rules, so they are few.
func SecLabel(text string) uint32 {
	secLabels.mu.Lock()
	defer secLabels.mu.Unlock()
	var old []string
	if p := secLabels.texts.Load(); p != nil {
		old = *p
	}
	for i, s := range old {
		if s == text {
			return uint32(i + 1)
		}
	}
	texts := append(old[:len(old):len(old)], text)
	secLabels.texts.Store(&texts)
	return uint32(len(texts))
}

// SecLabelText is the label's text; "" for 0 and for a number that no label has.
func SecLabelText(id uint32) string {
	p := secLabels.texts.Load()
	if p == nil || id == 0 || int64(id) > int64(len(*p)) {
		return ""
	}
	return (*p)[id-1]
}
