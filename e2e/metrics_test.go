package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sluice/e2e/lab"
)

// freePort finds a loopback port that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("%s: %s, %v\n%s", url, r.Status, err, text)
	}
	return string(text)
}

const metricRules = `
[iptables.nat]
rules = ["-A POSTROUTING -o wan0 -j MASQUERADE"]
[iptables.filter]
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment known -j ACCEPT",
  "-A FORWARD -i lan0 -p udp --dport 9 -j DROP",
  "-A FORWARD -i lan0 -j ACCEPT",
]
`

// TestMetrics: promtool has no complaints, a Prometheus scrapes the router, and
// every query of the board gives data.
func TestMetrics(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	l.Need("prometheus", "promtool", "ping")
	client, server := l.NS("client"), l.NS("server")
	addr := freePort(t)
	r := l.Sluice(pair + metricRules + fmt.Sprintf("[control]\nsocket = \"{dir}/sluice.sock\"\nhttp = %q\n", addr))
	serve(server, "198.51.100.2:80")
	sees(t, client, "198.51.100.2:80", "198.51.100.1")
	client.Start("ping", "-n", "-q", "-i", "0.05", "198.51.100.2")
	client.Start("sh", "-c", "while echo x; do sleep 0.1; done | nc -u 198.51.100.2 9")
	r.AwaitDropped("filter.FORWARD.rule", 1)

	text := get(t, "http://"+addr+"/metrics")
	for _, want := range []string{`sluice_interface_up{interface="lan0",type="tun"} 1`, `sluice_dropped_packets_total{reason="filter.FORWARD.rule"}`,
		`sluice_rule_packets_total{chain="FORWARD",family="ipv4",rule="known",table="filter",target="ACCEPT"}`,
		`sluice_rule_packets_total{chain="FORWARD",family="ipv4",rule="2",table="filter",target="DROP"}`,
		`sluice_hook_packets_total{family="ipv4",hook="FORWARD"}`, `sluice_chain_bytes_total{chain="FORWARD",family="ipv4",table="filter"}`,
		`sluice_worker_bursts_total{worker="0"}`, `sluice_worker_busy_seconds_total{worker="0"}`, "sluice_conntrack_entries ",
		`sluice_nat_ports_in_use{address="198.51.100.1",protocol="tcp"} 1`, "go_goroutines ", "process_cpu_seconds_total "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
	if s := get(t, "http://"+addr+"/healthz") + get(t, "http://"+addr+"/readyz"); s != "ok\nready\n" {
		t.Errorf("%q", s)
	}

	prom := freePort(t)
	conf := l.File("prometheus.yml", fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs: [{job_name: sluice, static_configs: [{targets: [%q]}]}]\n", addr))
	p := l.StartCommand(exec.Command("prometheus", "--config.file="+conf, "--storage.tsdb.path="+filepath.Join(l.Dir, "tsdb"), "--web.listen-address="+prom))
	query := func(expr string) (int, error) {
		res, err := http.Get("http://" + prom + "/api/v1/query?query=" + url.QueryEscape(expr))
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		var v struct {
			Error string
			Data  struct{ Result []json.RawMessage }
		}
		if err := json.NewDecoder(res.Body).Decode(&v); err != nil || v.Error != "" {
			return 0, fmt.Errorf("%s: %s %v", expr, v.Error, err)
		}
		return len(v.Data.Result), nil
	}
	l.Eventually(3*deadline, "Prometheus has a rate", func() bool {
		n, err := query(`rate(sluice_forwarded_packets_total[10s]) > 0`)
		return err == nil && n > 0
	})
	board, err := os.ReadFile("../configs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var b struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(board, &b); err != nil || len(b.Panels) < 10 {
		t.Fatalf("the board: %v", err)
	}
	for _, panel := range b.Panels {
		for _, target := range panel.Targets {
			expr := strings.NewReplacer("$__rate_interval", "20s", "$job", "sluice", "$instance", ".*").Replace(target.Expr)
			l.Eventually(2*deadline, panel.Title+": data for "+expr, func() bool {
				n, err := query(expr)
				if err != nil {
					t.Fatalf("%v\n%s", err, p.Output())
				}
				return n > 0
			})
		}
	}
	client.Must("ip", "link", "del", "lan0")
	l.Eventually(deadline, "not ready", func() bool {
		res, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode == http.StatusServiceUnavailable && string(text) == "lan0 is gone\n"
	})
}
