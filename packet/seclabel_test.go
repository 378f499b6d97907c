package packet

import (
	"fmt"
	"sync"
	"testing"
)

func TestSecLabel(t *testing.T) {
	if s := SecLabelText(0); s != "" {
		t.Errorf("label 0 is %q", s)
	}
	if s := SecLabelText(1 << 31); s != "" {
		t.Errorf("a label that does not exist is %q", s)
	}
	var wg sync.WaitGroup
	ids := make([][50]uint32, 4)
	for g := range ids {
		wg.Go(func() {
			for i := range 50 {
				text := fmt.Sprintf("system_u:object_r:l%d_t:s0", i)
				id := SecLabel(text)
				ids[g][i] = id
				if got := SecLabelText(id); got != text {
					t.Errorf("label %d is %q, want %q", id, got, text)
				}
			}
		})
	}
	wg.Wait()
	seen := map[uint32]bool{}
	for i, id := range ids[0] {
		if id == 0 || seen[id] {
			t.Errorf("label %d: number %d is taken or 0", i, id)
		}
		seen[id] = true
		for g := range ids {
			if ids[g][i] != id {
				t.Errorf("label %d has the numbers %d and %d", i, id, ids[g][i])
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { SecLabelText(3) }); n != 0 {
		t.Errorf("SecLabelText allocates %v times", n)
	}
}
