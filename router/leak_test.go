package router

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestCloseFrees: a router that is closed and given up is collected, whatever
// state its rules had.
func TestCloseFrees(t *testing.T) {
	for _, rule := range []string{
		"", "-m hashlimit --hashlimit-upto 1/s --hashlimit-name a", "-m recent --set", "-m limit --limit 1/s", "-m connlimit --connlimit-above 3",
		"-m quota --quota 5", "-m statistic --mode nth --every 2 --packet 0", "-j IDLETIMER --timeout 600 --label l", "-j RATEEST --rateest-name r --rateest-interval 250ms --rateest-ewmalog 500ms",
		"-j NFQUEUE", "-j NFLOG", "-j LOG", "-m string --algo bm --string x", "-m conntrack --ctstate NEW", "-p tcp -j SYNPROXY",
	} {
		gone := make(chan struct{})
		func() {
			r, err := New(&Config{Router: RouterConfig{Workers: 1}}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if rule != "" {
				if _, err := r.Command("", append([]string{"iptables", "-A", "INPUT"}, strings.Fields(rule)...)...); err != nil {
					t.Fatal(err)
				}
			}
			runtime.AddCleanup(r, func(c chan struct{}) { close(c) }, gone)
			r.Close()
		}()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			runtime.GC()
			select {
			case <-gone:
			default:
				if time.Now().After(end) {
					t.Errorf("%q: a closed router is still held", rule)
				} else {
					continue
				}
			}
			break
		}
	}
}
