package conntrack_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// TestRandomSCTPAgainstTheKernel plays associations that go wrong in random
// ways; SLUICE_ORACLE and SLUICE_SEED as for TCP.
func TestRandomSCTPAgainstTheKernel(t *testing.T) {
	rounds := 10
	if n, err := strconv.Atoi(os.Getenv("SLUICE_ORACLE")); err == nil {
		rounds = n
	} else if testing.Short() {
		rounds = 3
	}
	seed := uint64(1) // the same each time: a change is judged by what it changes
	if n, err := strconv.ParseUint(os.Getenv("SLUICE_SEED"), 10, 64); err == nil {
		seed = n
	}
	p := newPair(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	ends := [2]string{"sctp 10.1.0.2:1000 > 10.2.0.2:2000", "sctp 10.2.0.2:2000 > 10.1.0.2:1000"}
	chunk := func(typ, tag uint32) string {
		flags := rng.IntN(4) / 3
		switch typ {
		case 1, 2:
			return fmt.Sprintf("%02x%02x0014%08x000100000001000100000000", typ, flags, tag)
		case 0, 3:
			return fmt.Sprintf("%02x%02x0010000000010000000000000000", typ, flags)
		case 4, 5, 7, 9:
			return fmt.Sprintf("%02x%02x000800010004", typ, flags)
		}
		return fmt.Sprintf("%02x%02x0004", typ, flags)
	}
	usual := [][2]uint32{{0, 1}, {1, 2}, {0, 10}, {1, 11}, {0, 0}, {1, 3}, {0, 4}, {1, 5}, {0, 7}, {1, 8}, {0, 14}}
	for range rounds {
		p.reset()
		tags := [2]uint32{0x11, 0x22} // what each side wants to be addressed by
		at := 0
		for range 14 {
			step := usual[at%len(usual)]
			dir, typ := step[0], step[1]
			at++
			switch rng.IntN(5) {
			case 0:
				dir, typ = uint32(rng.IntN(2)), uint32(rng.IntN(16))
			case 1:
				typ = []uint32{4, 5, 6, 0, 1, 2, 8, 9}[rng.IntN(8)]
			case 2:
				at += rng.IntN(2)
			}
			vtag := tags[1-dir]
			if typ == 1 {
				vtag = 0
			}
			if rng.IntN(12) == 0 {
				vtag = []uint32{0, 0x11, 0x22, 0x33}[rng.IntN(4)]
			}
			tag := tags[dir]
			if rng.IntN(10) == 0 {
				tag++
			}
			body := chunk(typ, tag)
			if rng.IntN(6) == 0 {
				body += chunk(uint32(rng.IntN(16)), tag)
			}
			desc := fmt.Sprintf("%s SCTP vtag=%d %s", ends[dir], vtag, body)
			if !p.stepBytes(int(dir), desc, frame(t, desc)) {
				t.Fatalf("SLUICE_SEED=%d", seed)
			}
		}
	}
}
