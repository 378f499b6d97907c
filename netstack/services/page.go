package services

import (
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
)

// View is what the page shows of a status: the members of its JSON form that
// have these names. Others are in /status.json only.
type View struct {
	Version    string  `json:"version"`
	Uptime     float64 `json:"uptime_seconds"`
	Forwarded  uint64  `json:"forwarded_packets"`
	Delivered  uint64  `json:"delivered_packets"`
	Sent       uint64  `json:"sent_packets"`
	Interfaces []struct {
		Name      string   `json:"name"`
		Type      string   `json:"type"`
		State     string   `json:"state"`
		MTU       int      `json:"mtu"`
		Addresses []string `json:"addresses"`
		RxPackets uint64   `json:"rx_packets"`
		RxBytes   uint64   `json:"rx_bytes"`
		TxPackets uint64   `json:"tx_packets"`
		TxBytes   uint64   `json:"tx_bytes"`
	} `json:"interfaces"`
	Drops []struct {
		Reason  string `json:"reason"`
		Doc     string `json:"doc"`
		Packets uint64 `json:"packets"`
	} `json:"drops"`
	Conntrack struct {
		Count int64 `json:"count"`
		Max   int64 `json:"max"`
	} `json:"conntrack"`
	Tables []struct {
		Family string `json:"family"`
		Name   string `json:"name"`
		Chains []struct {
			Name    string `json:"name"`
			Policy  string `json:"policy"`
			Packets uint64 `json:"packets"`
			Bytes   uint64 `json:"bytes"`
			Rules   []struct {
				Text    string `json:"text"`
				Packets uint64 `json:"packets"`
				Bytes   uint64 `json:"bytes"`
			} `json:"rules"`
		} `json:"chains"`
	} `json:"tables"`
}

// NewPage is the status page: "/" as HTML (or JSON, to whom asks for it),
// "/status.json" as JSON.
func NewPage(source Source) http.Handler {
	mux := http.NewServeMux()
	asJSON := func(w http.ResponseWriter) []byte {
		var st any = struct{}{}
		if source != nil {
			st = source.Status()
		}
		b, err := json.MarshalIndent(st, "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return nil
		}
		return append(b, '\n')
	}
	raw := func(w http.ResponseWriter, _ *http.Request) {
		if b := asJSON(w); b != nil {
			w.Header().Set("Content-Type", "application/json")
			w.Write(b)
		}
	}
	mux.HandleFunc("GET /status.json", raw)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Accept"); strings.Contains(a, "application/json") && !strings.Contains(a, "text/html") {
			raw(w, r)
			return
		}
		b := asJSON(w)
		if b == nil {
			return
		}
		var v View
		var out strings.Builder
		err := json.Unmarshal(b, &v)
		if err == nil {
			err = page.Execute(&out, &v)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.Write([]byte(out.String()))
	})
	return mux
}

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"join":  func(s []string) string { return strings.Join(s, ", ") },
	"since": func(s float64) string { return (time.Duration(s) * time.Second).String() },
	"bytes": func(n uint64) string {
		f, unit := float64(n), 0
		for f >= 1024 && unit < 5 {
			f, unit = f/1024, unit+1
		}
		if unit == 0 {
			return fmt.Sprint(n)
		}
		return fmt.Sprintf("%.1f %ciB", f, " KMGTP"[unit])
	},
}).Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>sluice</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; margin: .5em 0 1.5em; width: 100% }
th, td { text-align: left; padding: .2em .8em .2em 0; border-bottom: 1px solid #ddd; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
h3 { margin: 1em 0 0; font-size: 1em }
</style></head><body>
<h1>sluice {{.Version}}</h1>
<p>Up {{since .Uptime}}. Forwarded {{.Forwarded}} packets, delivered {{.Delivered}} to local sockets, sent {{.Sent}} from them.
Conntrack: {{.Conntrack.Count}} of {{.Conntrack.Max}} entries. <a href="/status.json">JSON</a></p>
<h2>Interfaces</h2>
<table><tr><th>Name</th><th>Type</th><th>State</th><th>Addresses</th><th class="n">MTU</th><th class="n">RX packets</th><th class="n">RX bytes</th><th class="n">TX packets</th><th class="n">TX bytes</th></tr>
{{range .Interfaces}}<tr><td>{{.Name}}</td><td>{{.Type}}</td><td>{{.State}}</td><td>{{join .Addresses}}</td><td class="n">{{.MTU}}</td><td class="n">{{.RxPackets}}</td><td class="n">{{bytes .RxBytes}}</td><td class="n">{{.TxPackets}}</td><td class="n">{{bytes .TxBytes}}</td></tr>
{{else}}<tr><td colspan="9">none</td></tr>{{end}}</table>
<h2>Drops</h2>
<table><tr><th>Reason</th><th></th><th class="n">Packets</th></tr>
{{range .Drops}}<tr><td><code>{{.Reason}}</code></td><td>{{.Doc}}</td><td class="n">{{.Packets}}</td></tr>
{{else}}<tr><td colspan="3">none</td></tr>{{end}}</table>
<h2>Tables</h2>
{{range .Tables}}{{$t := .}}{{range .Chains}}<h3>{{$t.Family}} {{$t.Name}} {{.Name}}{{if .Policy}} (policy {{.Policy}}, {{.Packets}} packets, {{bytes .Bytes}} bytes){{end}}</h3>
{{if .Rules}}<table><tr><th>Rule</th><th class="n">Packets</th><th class="n">Bytes</th></tr>
{{range .Rules}}<tr><td><code>{{.Text}}</code></td><td class="n">{{.Packets}}</td><td class="n">{{bytes .Bytes}}</td></tr>
{{end}}</table>{{end}}{{end}}{{end}}
</body></html>
`))
