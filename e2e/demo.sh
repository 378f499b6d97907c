#!/usr/bin/env bash
# sluice at work: a client and a server in network namespaces, the router
# between them, and real programs through it. Removes all that it made.
set -euo pipefail
cd "$(dirname "$0")/.."
sluice=${SLUICE:-$PWD/sluice}

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold= dim= off=; fi
step() { printf '\n%s%s%s\n' "$bold" "== $1" "$off"; [ -z "${2:-}" ] || printf '%s%s%s\n' "$dim" "$2" "$off"; }

if [ "$(id -u)" != 0 ]; then
	step "A command behind a firewall of its own" "sluice exec makes namespaces, a device and a router for one command. It needs no root."
	own=$(mktemp -d)
	trap 'rm -rf "$own"' EXIT
	alone() { printf '$ sluice exec -- %s\n' "${*//"$sluice"/sluice}"; XDG_RUNTIME_DIR=$own "$sluice" exec -- "$@"; }
	alone sh -c 'id -u; ip -br addr show exec0; ping -c 1 10.0.2.2'
	alone sh -c 'exit 7' || echo "exit status $?"
	alone "$sluice" iptables -F || echo "exit status $?: the rules cannot be changed from inside"
	rm -rf "$own"
	# An ordinary user is root in a user namespace of their own: enough for all of this.
	if ! unshare -Urnm true 2>/dev/null; then
		echo "The demo needs root, or user namespaces for ordinary users. Try: sudo make demo" >&2
		exit 1
	fi
	exec unshare -Urnm --map-root-user env SLUICE_DEMO_INSIDE=1 bash -c 'mount -t tmpfs tmpfs /run && exec bash "$0"' "$PWD/e2e/demo.sh"
fi
if ! { : <>/dev/net/tun; } 2>/dev/null; then
	echo "The demo needs /dev/net/tun, and may not open it. As root: modprobe tun; chmod 0666 /dev/net/tun" >&2
	exit 1
fi
[ -x "$sluice" ] || { echo "There is no $sluice yet; run: make demo" >&2; exit 1; }
for p in ip ping traceroute curl iperf3 python3; do
	command -v "$p" >/dev/null || { echo "The demo needs $p; run: sh e2e/deps.sh (as root), or install it." >&2; exit 1; }
done

dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-demo.XXXXXX")
client=sluice-demo-client-$$ server=sluice-demo-server-$$
router=
pids=()
cleanup() {
	status=$?
	[ -n "$router" ] && kill "$router" 2>/dev/null && wait "$router" 2>/dev/null
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
	wait 2>/dev/null || true
	ip netns del "$client" 2>/dev/null || true
	ip netns del "$server" 2>/dev/null || true
	[ $status = 0 ] || { echo "--- the router's log:"; cat "$dir/router.log" 2>/dev/null || true; }
	rm -rf "$dir"
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

in_client() { ip netns exec "$client" "$@"; }
in_server() { ip netns exec "$server" "$@"; }
show() { printf '$ %s\n' "$*" | sed "s/ip netns exec $client /client: /; s/ip netns exec $server /server: /; s|$sluice|sluice|; s|--socket $dir/sluice.sock ||; s/in_client /client: /; s/in_server /server: /"; "$@"; }
tool() { printf '$ sluice %s\n' "$*"; "$sluice" --socket "$dir/sluice.sock" "$@"; }
wait_for() { for _ in $(seq 400); do "$@" >/dev/null 2>&1 && return; sleep 0.05; done; echo "gave up waiting for: $*" >&2; return 1; }

ip netns add "$client"
ip netns add "$server"
in_client ip link set lo up
in_server ip link set lo up

cat >"$dir/web.py" <<'PY'
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{sys.argv[2]} says: you come from {self.client_address[0]}\n".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), H).serve_forever()
PY

if [ -z "${SLUICE_DEMO_INSIDE:-}" ]; then
# A command behind a firewall of its own: first, because it needs nothing but the binary.
ip link add out0 netns "$client" type veth peer name in0 netns "$server"
in_client ip addr add 192.0.2.1/24 dev out0
in_server ip addr add 192.0.2.2/24 dev in0
in_client ip link set out0 up
in_server ip link set in0 up
ip netns exec "$server" python3 "$dir/web.py" 80 "a web server" & pids+=($!)
ip netns exec "$server" python3 "$dir/web.py" 8025 "another server" & pids+=($!)
web=${pids[*]}
wait_for in_client curl -s http://192.0.2.2/
wait_for in_client curl -s http://192.0.2.2:8025/
cat >"$dir/deny.rules" <<'RULES'
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 8025 -m comment --comment "not there" -j REJECT --reject-with tcp-reset
-A FORWARD -i exec0 -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
RULES
chmod 755 "$dir"
chmod 644 "$dir"/*
mkdir -m 1777 "$dir/user"
step "A command behind a firewall of its own" "sluice exec makes namespaces, a device and a router for one command. It needs no root."
cat "$dir/deny.rules"
as_user=()
if [ "$(id -u)" = 0 ] && setpriv --reuid 65534 --regid 65534 --clear-groups "$sluice" version >/dev/null 2>&1; then
	as_user=(setpriv --reuid 65534 --regid 65534 --clear-groups env "HOME=$dir/user" "TMPDIR=$dir/user" XDG_RUNTIME_DIR=)
fi
behind() { printf '$ sluice exec --rules deny.rules -- %s\n' "${*//"$sluice"/sluice}"; ip netns exec "$client" "${as_user[@]}" "$sluice" exec --rules "$dir/deny.rules" -- "$@"; }
behind sh -c 'id -un; ip -br addr show exec0'
behind curl -sS --max-time 5 http://192.0.2.2/
behind curl -sS --max-time 5 http://192.0.2.2:8025/ && { echo "that should have been refused" >&2; exit 1; } || true
step "Its exit status is the command's; the rules cannot be changed from inside"
behind sh -c 'exit 7' || echo "exit status $?"
behind "$sluice" iptables -F || echo "exit status $?"
for p in $web; do kill "$p" 2>/dev/null || true; done
in_client ip link del out0
fi

cat >"$dir/demo.rules" <<'RULES'
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lan0 -p udp -m udp --dport 33434:33534 -j REJECT --reject-with icmp-port-unreachable
-A INPUT -i lan0 -p tcp -m tcp --dport 80 -m comment --comment "the router's own status page" -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate DNAT -m comment --comment "published services" -j ACCEPT
-A FORWARD -i lan0 -o wan0 -p tcp -m tcp --dport 25 -m comment --comment "no mail from here" -j REJECT --reject-with tcp-reset
-A FORWARD -i lan0 -o wan0 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -i wan0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.1.2:80
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT
RULES
cat >"$dir/demo6.rules" <<'RULES'
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan0 -o wan0 -j ACCEPT
COMMIT
RULES
cat >"$dir/demo.toml" <<TOML
[control]
socket = "$dir/sluice.sock"

[[interface]]
name      = "lan0"
addresses = ["10.0.1.1/24", "fd00:1::1/64"]
  [interface.host]
  netns     = "$client"
  addresses = ["10.0.1.2/24", "fd00:1::2/64"]
  routes    = ["default via 10.0.1.1", "default via fd00:1::1"]

[[interface]]
name      = "wan0"
addresses = ["198.51.100.1/24", "fd00:2::1/64"]
  [interface.host]
  netns     = "$server"
  addresses = ["198.51.100.2/24", "fd00:2::2/64"]
  routes    = ["fd00:1::/64 via fd00:2::1"]

[iptables]
restore = ["demo.rules"]
[ip6tables]
restore = ["demo6.rules"]

[[service]]
type   = "http"
listen = ["tcp://10.0.1.1:80"]
TOML

echo
cat <<TEXT
sluice is a router in one process. Here it joins two network namespaces:

   client 10.0.1.2 ── lan0 [ sluice ] wan0 ── 198.51.100.2 server
        fd00:1::2                              fd00:2::2

Both devices are TUN devices; the kernel does not route between them. The
client's network is hidden behind MASQUERADE, port 8080 of the router leads to
the client's web server (DNAT), and mail (port 25) is refused.
TEXT

step "The rules are ordinary iptables rules" "$dir/demo.rules, as iptables-save would print them"
cat "$dir/demo.rules"

step "Start the router"
"$sluice" run -c "$dir/demo.toml" >"$dir/ready" 2>"$dir/router.log" &
router=$!
wait_for grep -q 'sluice: ready' "$dir/ready"
cat "$dir/ready"

# Without a function between, $! is the program itself.
ip netns exec "$server" python3 "$dir/web.py" 80 "the server" & pids+=($!)
ip netns exec "$client" python3 "$dir/web.py" 80 "the client" & pids+=($!)
ip netns exec "$server" iperf3 -s >/dev/null & pids+=($!)
wait_for in_server curl -s http://127.0.0.1/
wait_for in_client curl -s http://127.0.0.1/
wait_for in_server bash -c ': </dev/tcp/127.0.0.1/5201'

step "ping through the router, and the router itself"
show in_client ping -c 3 -i 0.2 198.51.100.2
show in_client ping -c 1 10.0.1.1

step "traceroute" "The first line is sluice: the TTL ran out there, and it sent the time exceeded."
show in_client traceroute -n -N 1 -w 2 -q 1 198.51.100.2

step "curl through MASQUERADE" "The server sees the router's address, not the client's."
show in_client curl -sS --max-time 5 http://198.51.100.2/

step "curl to a DNAT port" "From outside, port 8080 of the router is the client's web server."
show in_server curl -sS --max-time 5 http://198.51.100.1:8080/

step "A rejected port" "REJECT --reject-with tcp-reset: refused at once, not timed out."
show in_client curl -sS --max-time 5 http://198.51.100.2:25/ && { echo "that should have been refused" >&2; exit 1; } || true

step "The router's own web page" "A socket of the router itself: INPUT, the gVisor stack, OUTPUT."
show in_client curl -sS --max-time 5 -o /dev/null -w 'HTTP %{http_code}, %{size_download} bytes\n' http://10.0.1.1/

step "ping6"
show in_client ping -6 -c 3 -i 0.2 fd00:2::2

step "iperf3, three seconds" "TCP through five hooks, conntrack and NAT."
show in_client iperf3 -c 198.51.100.2 -t 3 -f g | grep -E 'Interval|sender|receiver'

step "The rules and what they counted"
tool iptables -L -n -v
tool iptables -t nat -L -n -v

step "The connections" "Both directions of each; the reply goes to the router's address."
tool conntrack -L

step "Stop it"
kill -TERM "$router"
wait "$router" && echo "the router ended cleanly"
router=
for ns in "$client" "$server"; do
	if ip netns exec "$ns" ip -br link | grep -E '^(lan0|wan0)'; then echo "a device was left behind" >&2; exit 1; fi
done
echo "its devices are gone with it"
