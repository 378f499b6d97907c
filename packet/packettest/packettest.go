// Package packettest makes packets for tests from the descriptions that package
// packettext reads.
package packettest

import (
	"testing"

	"sluice/packet"
	"sluice/packet/packettext"
)

// New makes a parsed packet of a description; a bad description fails the test.
func New(t testing.TB, desc string) *packet.Packet {
	t.Helper()
	p := Raw(t, desc)
	if r := p.Parse(); r != 0 {
		t.Fatalf("%s: %v", desc, r)
	}
	return p
}

// Raw is New without Parse.
func Raw(t testing.TB, desc string) *packet.Packet {
	t.Helper()
	b, err := Frame(desc)
	if err != nil {
		t.Fatal(err)
	}
	p := packet.New()
	p.SetBytes(b)
	return p
}

// MustFrame is Frame for descriptions known to be good.
func MustFrame(desc string) []byte {
	b, err := Frame(desc)
	if err != nil {
		panic(err)
	}
	return b
}

// Frame makes the network packet of a description.
func Frame(desc string) ([]byte, error) { return packettext.Frame(desc) }

// Fragments makes a description's packet in IP fragments; see packettext.
func Fragments(desc string, sizes ...int) ([][]byte, error) {
	return packettext.Fragments(desc, sizes...)
}

// Describe says in one line what a network packet is.
func Describe(b []byte) string { return packettext.Describe(b) }
