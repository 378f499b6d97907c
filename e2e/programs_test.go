package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// resolves gives the den a nameserver, 198.51.100.1, that knows these records.
func (d *den) resolves(records ...string) {
	d.T.Helper()
	zone(d.T.(*testing.T), d.ns, "198.51.100.1:53", records...)
	d.File("resolv.conf", "nameserver 198.51.100.1\noptions timeout:2\n")
}

// address adds addresses to the den's host.
func (d *den) address(addrs ...string) {
	d.T.Helper()
	for _, a := range addrs {
		d.ns.Must("ip", "addr", "add", a+"/32", "dev", "lo")
	}
}

// home is a folder that the command may write to.
func (d *den) home(name string) string {
	d.T.Helper()
	dir := d.Dir + "/" + name
	if err := os.Mkdir(dir, 0o777); err != nil {
		d.T.Fatal(err)
	}
	os.Chmod(dir, 0o777)
	return dir
}

// gitServer is git's own program for repositories over HTTP, with one in it.
func gitServer(d *den) http.Handler {
	d.T.Helper()
	dir := d.home("git")
	for _, args := range [][]string{
		{"init", "-q", "-b", "main", dir + "/work"},
		{"-C", dir + "/work", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "--allow-empty", "-m", "from the repository"},
		{"clone", "-q", "--bare", dir + "/work", dir + "/repo.git"},
	} {
		c := exec.Command("git", args...)
		c.Env = append(os.Environ(), "HOME="+dir, "GIT_CONFIG_NOSYSTEM=1")
		if out, err := c.CombinedOutput(); err != nil {
			d.T.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		d.T.Fatal(err)
	}
	return &cgi.Handler{
		Path: strings.TrimSpace(string(path)) + "/git-http-backend",
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
}

// registry serves one package, as npm's registry does and as PyPI's simple index does.
func registry(host string) http.Handler {
	var pack bytes.Buffer
	z := gzip.NewWriter(&pack)
	w := tar.NewWriter(z)
	for name, text := range map[string]string{"package.json": `{"name":"small","version":"1.0.0","main":"index.js"}`, "index.js": "module.exports = 'from the registry'\n"} {
		w.WriteHeader(&tar.Header{Name: "package/" + name, Mode: 0o644, Size: int64(len(text))})
		io.WriteString(w, text)
	}
	w.Close()
	z.Close()
	file := fmt.Sprintf("http://%s/small/-/small-1.0.0.tgz", host)
	mux := http.NewServeMux()
	mux.HandleFunc("/small/-/small-1.0.0.tgz", func(w http.ResponseWriter, _ *http.Request) { w.Write(pack.Bytes()) })
	mux.HandleFunc("/small", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"name":"small","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"small","version":"1.0.0","dist":{"tarball":%q,"shasum":"%x"}}}}`, file, sha1.Sum(pack.Bytes()))
	})
	mux.HandleFunc("/simple/small/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `<a href="/small/-/small-1.0.0.tgz#sha256=%x">small-1.0.0.tgz</a>`, sha256.Sum256(pack.Bytes()))
	})
	return mux
}

// pip does what pip does to download a package, with Python's own library.
const pip = `
import hashlib, re, sys, urllib.parse, urllib.request
index = "http://registry.test/simple/small/"
page = urllib.request.urlopen(index, timeout=20).read().decode()
link, digest = re.search(r'href="([^#"]*)#sha256=(\w+)"', page).groups()
body = urllib.request.urlopen(urllib.parse.urljoin(index, link), timeout=20).read()
assert hashlib.sha256(body).hexdigest() == digest
print("package of", len(body) > 100)
`

// sshServer is OpenSSH's, for root with a key; it gives the key's file.
func sshServer(d *den, addr string) (key string) {
	d.T.Helper()
	os.MkdirAll("/run/sshd", 0o755) // sshd wants it, empty, and takes it for granted
	dir := d.home("ssh")
	for _, k := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/"+k).CombinedOutput(); err != nil {
			d.T.Fatalf("%v\n%s", err, out)
		}
	}
	if d.kind.user != "root" {
		os.Chown(dir+"/user", 65534, 65534)
	}
	host, port, _ := strings.Cut(addr, ":")
	conf := d.File("sshd_config", fmt.Sprintf("ListenAddress %s\nPort %s\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nPermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n", host, port, dir, dir))
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd"
	}
	d.ns.Start(sshd, "-D", "-e", "-f", conf).Expect("Server listening", 2*deadline)
	return dir + "/user"
}

// TestExecPrograms: what people run, by names of an allow list.
func TestExecPrograms(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("curl", "dig", "git", "ssh", "ssh-keygen", "python3", "ping")
		d.address("198.51.100.2", "198.51.100.3")
		d.resolves("good.test. 300 IN A 198.51.100.1", "registry.test. 300 IN A 198.51.100.1", "git.test. 300 IN A 198.51.100.1", "ssh.test. 300 IN A 198.51.100.2", "bad.test. 300 IN A 198.51.100.3")
		repo, packages := gitServer(d), registry("registry.test")
		page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.Host {
			case "git.test":
				repo.ServeHTTP(w, r)
			case "registry.test":
				packages.ServeHTTP(w, r)
			default:
				io.WriteString(w, "the page of "+r.Host+"\n")
			}
		})
		go http.Serve(d.ns.Listen("198.51.100.1:80"), page)
		go http.Serve(d.ns.Listen("198.51.100.3:80"), page)
		key := sshServer(d, "198.51.100.2:22")
		home := d.home("home")
		script := `
			export HOME=$1 GIT_CONFIG_NOSYSTEM=1 no_proxy='*'; cd "$HOME"
			curl -sS --max-time 20 http://good.test/
			echo "dig: $(dig +short +time=5 good.test)"
			echo "dig: $(dig +short +tcp +time=5 good.test)"
			git clone -q http://git.test/repo.git && git -C repo log --format=%s
			git ls-remote http://git.test/repo.git main | grep -c refs/heads/main
			/usr/bin/env python3 -c "$3"
			ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile="$HOME/known" -o ConnectTimeout=20 -i "$2" root@ssh.test 'echo over ssh; cat' <<-'END'
				and back
			END
			ping -n -c 1 -W 10 registry.test | grep received
			if command -v npm >/dev/null; then
				npm install --silent --no-audit --no-fund --no-update-notifier --fetch-retries=0 --registry http://registry.test/ small
				node -p 'require("small")'
			fi
			curl -sS --max-time 5 http://bad.test/ 2>&1 || echo "bad: $?"
			curl -sS --max-time 5 http://198.51.100.3/ 2>&1 || echo "bad: $?"
			curl -sS --max-time 5 http://ssh.test/ 2>&1 || echo "bad: $?"`
		stdout, stderr, code := d.run("--allow", "good.test:80", "--allow", "git.test:80", "--allow", "registry.test", "--allow", "ssh.test:22", "--",
			"env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "sh", "-c", script, "sh", home, key, pip)
		want := map[string]int{
			"the page of good.test\n": 1, "dig: 198.51.100.1\n": 2, "from the repository\n": 1, "\n1\n": 1, "package of True\n": 1,
			"over ssh\nand back\n": 1, "1 received": 1, "bad: 6\n": 1, "bad: 7\n": 2,
		}
		if _, err := exec.LookPath("npm"); err == nil {
			want["from the registry\n"] = 1
		}
		for text, n := range want {
			if got := strings.Count(stdout, text); got != n {
				t.Errorf("%q is there %d times, not %d", text, got, n)
			}
		}
		for _, text := range []string{"name refused: it is not on the allow list name=bad.test", "connection denied protocol=tcp to=198.51.100.3:80", "connection denied protocol=tcp to=198.51.100.2:80 name=ssh.test",
			"allowed good.test 198.51.100.1 tcp/80", "allowed ssh.test 198.51.100.2 tcp/22", "denied ssh.test 198.51.100.2 tcp/80", "refused to look up bad.test"} {
			if !strings.Contains(stderr, text) {
				t.Errorf("%q was not said", text)
			}
		}
		if t.Failed() {
			t.Logf("exit status %d\n%s%s", code, stdout, stderr)
		}
		d.gone()
	})
}

// frontPage asks other hosts for something, as pages do, and writes down what came.
const frontPage = `<!doctype html><title>front</title><body><script>
const ask = async host => {
	let got = "nothing"
	try { got = await (await fetch("http://" + host + "/part")).text() } catch (e) {}
	const p = document.createElement("p")
	p.textContent = host + " gave " + got
	document.body.append(p)
}
ask("part.test"); ask("bad.test"); ask("198.51.100.3"); ask("127.0.0.1:80")
</script>`

// TestExecBrowser: a page in Chromium loads from allowed hosts, and nothing from others.
func TestExecBrowser(t *testing.T) {
	eachDen(t, func(t *testing.T, d *den) {
		d.Need("chromium")
		d.address("198.51.100.2", "198.51.100.3")
		d.resolves("front.test. 300 IN A 198.51.100.1", "part.test. 300 IN A 198.51.100.2", "bad.test. 300 IN A 198.51.100.3")
		page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.Header().Set("Access-Control-Allow-Private-Network", "true")
			if r.URL.Path == "/" {
				w.Header().Set("Content-Type", "text/html")
				io.WriteString(w, frontPage)
				return
			}
			io.WriteString(w, "a part")
		})
		for _, a := range []string{"198.51.100.1:80", "198.51.100.2:80", "198.51.100.3:80", "127.0.0.1:80"} {
			go http.Serve(d.ns.Listen(a), page)
		}
		out, errs, _ := d.run("--allow", "front.test", "--allow", "part.test:80", "--", "env", "HOME="+d.home("home"), "chromium", "--headless", "--no-sandbox", "--disable-gpu",
			"--disable-dev-shm-usage", "--no-proxy-server", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-features=OptimizationHints,Translate",
			"--user-data-dir="+d.Dir+"/home/profile", "--timeout=20000", "--virtual-time-budget=15000", "--dump-dom", "http://front.test/")
		for _, want := range []string{"part.test gave a part", "bad.test gave nothing", "198.51.100.3 gave nothing", "127.0.0.1:80 gave nothing"} {
			if !strings.Contains(out, want) {
				t.Errorf("the page does not say %q", want)
			}
		}
		for _, want := range []string{"refused to look up bad.test", "denied 198.51.100.3 tcp/80"} {
			if !strings.Contains(errs, want) {
				t.Errorf("%q was not said", want)
			}
		}
		if t.Failed() {
			t.Logf("%s\n%s", out, errs)
		}
		d.gone()
	})
}
