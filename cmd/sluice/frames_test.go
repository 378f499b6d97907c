package main

import (
	"io"
	"os"
	"testing"

	"github.com/google/gopacket/pcapgo"
)

// frames gives the times of the packets in a capture file, in ms since 1.7e9 s after 1970.
func frames(t *testing.T, name string) (at []int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		_, ci, err := r.ReadPacketData()
		if err == io.EOF {
			return at
		} else if err != nil {
			t.Fatal(err)
		}
		at = append(at, ci.Timestamp.UnixMilli()-1_700_000_000_000)
	}
}
