package router

import (
	"os/exec"
	"strings"
	"testing"
)

// TestInlined: the compiler puts these small functions of the packet path into
// their callers. One that has grown too large for that shows here.
func TestInlined(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this compiles four packages")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no compiler")
	}
	cmd := exec.Command("go", "build", "-gcflags=-m", "./packet", "./conntrack", "./nat", "./router")
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range []string{
		"(*Packet).Bytes", "(*Packet).Len", "(*Packet).Renew", "(*Packet).Transport", "(*Packet).TTL", "(*Packet).TOS", "fold64",
		"(*Entry).Status", "(*Entry).Tuple", "(*Entry).Info", "(*Entry).Pending", "(*Tuple).equal", "(*Table).at",
		"(*Probe).Touch", "(*Probe).TouchEntry", "(*Worker).Seek", "(*Worker).replied", "(*Worker).account",
		"(*worker).port",
	} {
		if !strings.Contains(string(out), ": can inline "+f+"\n") {
			t.Errorf("%s is not inlined any more", f)
		}
	}
}
