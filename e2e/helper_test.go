package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/e2e/lab"
)

// helperRules let nothing through but the control connections and what is
// RELATED to them: a data connection that arrives was expected by a helper.
const helperRules = `
[iptables.raw]
rules = [
  "-A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
  "-A PREROUTING -p udp --dport 69 -j CT --helper tftp",
]
[iptables.nat]
rules = [
  "-A POSTROUTING -o wan0 -j MASQUERADE",
  "-A PREROUTING -i wan0 -p tcp --dport 21 -j DNAT --to-destination 10.0.1.2:21",
  "-A PREROUTING -i wan0 -p udp --dport 69 -j DNAT --to-destination 10.0.1.2:69",
]
[iptables.filter]
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
  "-A FORWARD -p tcp --dport 21 -j ACCEPT",
  "-A FORWARD -p udp --dport 69 -j ACCEPT",
  "-A FORWARD -p tcp -m conntrack --ctstate RELATED -j ACCEPT",
  "-A FORWARD -p udp -m conntrack --ctstate RELATED -j ACCEPT",
]
[ip6tables.raw]
rules = ["-A PREROUTING -p tcp --dport 21 -j CT --helper ftp"]
[ip6tables.filter]
policy = { FORWARD = "DROP" }
rules = [
  "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
  "-A FORWARD -p tcp --dport 21 -j ACCEPT",
  "-A FORWARD -p tcp -m conntrack --ctstate RELATED -j ACCEPT",
]
`

// ftpServer runs vsftpd inside, with a file to fetch and a folder to write to.
func ftpServer(b *bed, ns *lab.NS, v6 bool) (upload string) {
	b.T.Helper()
	root := filepath.Join(b.Dir, "ftp")
	upload = filepath.Join(root, "incoming")
	for _, d := range []string{root, upload, filepath.Join(b.Dir, "empty")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			b.T.Fatal(err)
		}
	}
	os.Chmod(upload, 0o777)
	os.WriteFile(filepath.Join(root, "motd.txt"), []byte(strings.Repeat("the file that was asked for\n", 1000)), 0o644)
	conf := b.File("vsftpd.conf", `
background=NO
anonymous_enable=YES
anon_root={dir}/ftp
ftp_username=daemon
no_anon_password=YES
anon_upload_enable=YES
write_enable=YES
anon_umask=022
local_enable=NO
secure_chroot_dir={dir}/empty
pasv_promiscuous=NO
port_promiscuous=NO
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
`+map[bool]string{false: "listen=YES\nlisten_ipv6=NO\n", true: "listen=NO\nlisten_ipv6=YES\n"}[v6])
	ns.Start("vsftpd", conf)
	addr := "127.0.0.1:21"
	if v6 {
		addr = "[::1]:21"
	}
	b.Eventually(deadline, "vsftpd to listen", func() bool {
		c, err := ns.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return upload
}

// TestFTP: data connections both ways, opened by the client (PASV, EPSV) and by
// the server (PORT, EPRT), through MASQUERADE, through DNAT, and over IPv6.
func TestFTP(t *testing.T) {
	for name, x := range map[string]struct {
		v6, fromOutside bool
		url             string
	}{
		"masquerade": {url: "ftp://198.51.100.2/"},
		"dnat":       {fromOutside: true, url: "ftp://198.51.100.1/"},
		"ipv6":       {v6: true, url: "ftp://[fd00:2::2]/"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, helperRules)
			b.Need("vsftpd", "curl")
			from, at := b.client, b.server
			if x.fromOutside {
				from, at = b.server, b.client
			}
			upload := ftpServer(b, at, x.v6)
			save := "iptables-save"
			if x.v6 {
				save = "ip6tables-save"
			}
			want := strings.Repeat("the file that was asked for\n", 1000)
			modes := [][]string{{"--disable-epsv"}, {}, {"--ftp-port", "-", "--disable-eprt"}, {"--ftp-port", "-"}}
			if x.v6 {
				modes = [][]string{{}, {"--ftp-port", "-"}}
			}
			for i, mode := range modes {
				args := append([]string{"curl", "-sS", "-g", "--max-time", "20"}, mode...)
				if out, err := from.Run(append(args, x.url+"motd.txt")...); err != nil || out != want {
					t.Errorf("curl %v: %v, %d bytes:\n%.300s", mode, err, len(out), out)
					continue
				}
				local := b.File(fmt.Sprintf("up%d", i), strings.Repeat("to be stored\n", 20000))
				if out, err := from.Run(append(args, "-T", local, x.url+"incoming/")...); err != nil {
					t.Errorf("curl -T %v: %v\n%s", mode, err, out)
					continue
				}
				stored := filepath.Join(upload, filepath.Base(local))
				if got, err := os.ReadFile(stored); err != nil || string(got) != strings.Repeat("to be stored\n", 20000) {
					t.Errorf("%v: stored %d bytes, %v", mode, len(got), err)
				}
			}
			if n := b.r.Counter(save, "RELATED"); n != 2*len(modes) {
				t.Errorf("%d data connections were RELATED, not %d", n, 2*len(modes))
			}
		})
	}
}

// TestFTPWithoutHelper: with no helper there is nothing that a data connection is related to.
func TestFTPWithoutHelper(t *testing.T) {
	b := newBed(t, helperRules[strings.Index(helperRules, "[iptables.nat]"):strings.Index(helperRules, "[ip6tables.raw]")])
	b.Need("vsftpd", "curl")
	ftpServer(b, b.server, false)
	b.client.Fails("curl", "-sS", "--connect-timeout", "2", "--max-time", "3", "--disable-epsv", "ftp://198.51.100.2/motd.txt")
	if n := b.r.Counter("iptables-save", "-p tcp -m conntrack --ctstate RELATED"); n != 0 {
		t.Errorf("%d data connections were RELATED", n)
	}
	b.r.AwaitDropped("filter.FORWARD.policy", 1)
}

// TestFTPClient: the client that people know, active and passive.
func TestFTPClient(t *testing.T) {
	b := newBed(t, helperRules)
	b.Need("vsftpd", "ftp")
	ftpServer(b, b.server, false)
	for mode, flag := range map[string]string{"active": "-A", "passive": "-p"} {
		got := filepath.Join(b.Dir, mode)
		script := fmt.Sprintf("user anonymous me@\nepsv4 off\nget motd.txt %s\nquit\n", got)
		out, err := b.client.Run("sh", "-c", "printf '"+strings.ReplaceAll(script, "\n", `\n`)+"' | timeout 20 ftp "+flag+" -n -v 198.51.100.2")
		text, rerr := os.ReadFile(got)
		if err != nil || rerr != nil || len(text) != 28000 {
			t.Errorf("ftp %s: %v, %v, %d bytes:\n%s", flag, err, rerr, len(text), out)
		}
	}
	if n := b.r.Counter("iptables-save", "-p tcp -m conntrack --ctstate RELATED"); n != 2 {
		t.Errorf("%d data connections were RELATED, not 2", n)
	}
}

// TestTFTP: the answer comes from another port, and is RELATED; through
// MASQUERADE and through DNAT.
func TestTFTP(t *testing.T) {
	b := newBed(t, helperRules)
	b.Need("tftp", "in.tftpd")
	root := filepath.Join(b.Dir, "tftp")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(root, "image"), []byte(strings.Repeat("0123456789", 5000)), 0o644)
	for i, x := range []struct {
		from, at *lab.NS
		dst      string
	}{{b.client, b.server, "198.51.100.2"}, {b.server, b.client, "198.51.100.1"}} {
		x.at.Start("in.tftpd", "-L", "-4", "-a", "0.0.0.0:69", "-s", root)
		b.Eventually(deadline, "in.tftpd to listen", func() bool {
			return strings.Contains(x.at.Must("cat", "/proc/net/udp"), "00000000:0045 ")
		})
		got := filepath.Join(b.Dir, fmt.Sprintf("got%d", i))
		out, err := x.from.Run("timeout", "20", "tftp", "-4", "-m", "binary", x.dst, "-c", "get", "image", got)
		if text, rerr := os.ReadFile(got); err != nil || rerr != nil || len(text) != 50000 {
			t.Errorf("tftp: %v, %v, %d bytes\n%s", err, rerr, len(text), out)
		}
		if n := b.r.Counter("iptables-save", "-p udp -m conntrack --ctstate RELATED"); n <= i {
			t.Errorf("%d answers were RELATED, not %d", n, i+1)
		}
	}
}
