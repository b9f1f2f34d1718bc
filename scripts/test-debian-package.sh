# shellcheck shell=bash
# The parts `readme`, `units`, `deb` and `walkthroughs` of scripts/test-packaging, which sources this file. Each runs in a minimal Debian with
# systemd: the commands that README.md and the documents after it show, the units, the package, and the first day of three operators.

# A minimal Debian with systemd, as an image. It is kept between runs.
debian_image() {
    podman image exists localhost/banmesh-debian:test && return
    command -v mmdebstrap >/dev/null || install_packages mmdebstrap
    say 'making a minimal Debian'
    mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv,iproute2 \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$WORK/debian.tar" 2>"$WORK/debian.log" ||
        { cat "$WORK/debian.log" >&2; fail 'mmdebstrap'; }
    timeout 120 podman import --quiet "$WORK/debian.tar" localhost/banmesh-debian:test >/dev/null
    rm -f "$WORK/debian.tar"
}

cargo_deb() {
    PATH="$PWD/target/tools/bin:$PATH"
    cargo deb --version >/dev/null 2>&1 && return
    say 'building cargo-deb'
    # A quick build is enough for one small package.
    cargo install --quiet --locked --debug --no-default-features --root target/tools --version "$CARGO_DEB" cargo-deb
}

# The same image with packages in apt's cache, so that `apt-get install` works in a container without a way to a mirror. Kept too.
debian_image_with() { # package …
    local names=$* made
    image_with=localhost/banmesh-debian:${names// /-}
    podman image exists "$image_with" && return
    debian_image
    say "fetching $names for the minimal Debian"
    made=$(buildah from --pull-never localhost/banmesh-debian:test)
    cleanup+=("buildah rm $made >/dev/null 2>&1")
    poll 120 timeout 300 buildah run --isolation chroot --network host "$made" \
        sh -c "apt-get -qq update && apt-get -qq install -y --download-only $names" || fail "fetching $names"
    buildah commit --quiet --rm "$made" "$image_with" >/dev/null
}

# Starts that Debian as a container whose systemd runs, and gives `inside` to run something in it.
start_debian() { # name, image
    timeout 60 podman run -d --name "$1" --systemd=always --privileged "${2:-localhost/banmesh-debian:test}" /sbin/init >/dev/null
    cleanup+=("podman rm -f -v -t 0 $1 >/dev/null 2>&1")
    host=$1
    inside() { timeout 60 podman exec "$host" "$@"; }
    # shellcheck disable=SC2317 # called by poll
    # Degraded if one of Debian's own units fails in a container.
    is_running() { [[ $(inside systemctl is-system-running 2>/dev/null) =~ ^(running|degraded) ]]; }
    poll 60 is_running || fail 'systemd does not run in the container'
}

# What a source directory holds after `cargo build --release`, as far as the documents' commands use it: $WORK/src
source_directory() {
    [ ! -d "$WORK/src" ] || return 0
    [ -n "${BANMESH_STATIC:-}" ] || binary
    mkdir -p "$WORK/src/target/release"
    cp "${BANMESH_STATIC:-$BANMESH}" "$WORK/src/target/release/banmesh"
    strip --strip-debug "$WORK/src/target/release/banmesh"
    cp -r deploy "$WORK/src/"
}

# README.md and the documents that it names for the next steps, from nothing to a client that HAProxy refuses.
test_readme() {
    local packages
    containers
    mapfile -t packages < <(scripts/test-readme packages)
    debian_image_with "${packages[@]}"
    source_directory
    start_debian "banmesh-readme-$$" "$image_with"
    podman cp "$WORK/src" "$host:/src"
    scripts/test-readme podman exec -i "$host" || fail 'the commands of README.md and the documents that follow it'
    say 'readme: the commands in README.md, docs/install.md, docs/inputs.md and docs/haproxy.md end with a client that is refused'
}

# The commands and outputs in docs/walkthrough-*.md. BANMESH_UPDATE=1 writes the outputs.
test_walkthroughs() {
    containers
    tools
    [ -n "${BANMESH_STATIC:-}" ] || binary
    cargo_deb
    debian_image_with curl fail2ban haproxy nginx-light rsyslog
    scripts/build-deb "${BANMESH_STATIC:-$BANMESH}" --fast --output "$WORK/banmesh.deb" >/dev/null 2>&1 || fail 'build-deb'
    BANMESH_DEBIAN_IMAGE=$image_with BANMESH_DEBIAN_PACKAGE=$WORK/banmesh.deb \
        cargo test --quiet --locked --workspace --test walkthroughs -- --test-threads=1
    say 'walkthroughs: the commands in docs/walkthrough-*.md show what the documents show'
}

test_units() {
    containers
    debian_image
    source_directory
    {
        echo 'set -ex; cd /src'
        awk '/^## systemd/ { section = 1; next } /^## / { section = 0 } section && /^```$/ { exit } section && block; section && /^```sh/ { block = 1 }' docs/install.md
    } >"$WORK/src/guide"
    grep -q 'systemctl enable --now banmesh' "$WORK/src/guide" || fail 'docs/install.md has no commands for systemd'
    start_debian "banmesh-units-$$"
    podman cp "$WORK/src" "$host:/src"
    inside bash /src/guide >"$WORK/said" 2>&1 || { cat "$WORK/said" >&2; inside journalctl -u banmesh --no-pager >&2; fail 'the commands for systemd in docs/install.md'; }
    grep -q '^198.51.100.7 is banned' "$WORK/said" || { cat "$WORK/said" >&2; fail 'no first ban'; }

    # Two nodes on one host, as in the comment of the template.
    inside systemctl disable --quiet --now banmesh
    pair() { # name, port of SPOP, of gossip, of the other's gossip, of the API
        inside bash -c "umask 027; printf 'spoa: {address: 127.0.0.1, port: $2}\ncluster: {enabled: true, secret_file: /etc/banmesh/cluster.key, listen: \"127.0.0.1:$3\", seeds: [\"127.0.0.1:$4\"]}\nsyslog: {reuse_port: true}\napi: {port: $5}\n' >/etc/banmesh/$1.yaml; chgrp banmesh /etc/banmesh/$1.yaml"
    }
    inside bash -c 'umask 027; banmesh cluster keygen >/etc/banmesh/cluster.key; chgrp banmesh /etc/banmesh/cluster.key'
    pair primary 12345 12350 12351 8888
    pair backup 12346 12351 12350 8889
    inside systemctl start banmesh@primary banmesh@backup || { inside journalctl -u 'banmesh@*' --no-pager >&2; fail 'primary and backup'; }
    inside banmesh ban 198.51.100.9 --for 1h --socket /run/banmesh/primary.sock >/dev/null
    is_banned_there() { inside banmesh why 198.51.100.9 --json --socket /run/banmesh/backup.sock | grep -q '"banned": *true'; }
    poll 20 is_banned_there || fail 'the backup does not have the ban of the primary'
    say "units: docs/install.md leads to a first ban under systemd; primary and backup share one"
}

test_deb() {
    containers
    [ -n "${BANMESH_STATIC:-}" ] || binary
    cargo_deb
    debian_image
    # It installs sixty packages, so only for releases.
    command -v lintian >/dev/null || [ -z "${BANMESH_STATIC:-}" ] || install_packages lintian
    local from=${BANMESH_STATIC:-$BANMESH} first second name before pid before_upgrade
    first=$WORK/first.deb second=$WORK/second.deb
    scripts/build-deb "$from" --fast --output "$first" >/dev/null 2>"$WORK/warnings" || { cat "$WORK/warnings" >&2; fail 'build-deb'; }
    # A static binary has no dependencies.
    ! grep '^warning' "$WORK/warnings" | grep -v 'find dependency specification' || fail 'cargo-deb warns'
    scripts/build-deb "$from" --fast --output "$second" --deb-version 99.0.0-1 >/dev/null 2>&1
    if command -v lintian >/dev/null; then
        lintian --allow-root --fail-on error,warning "$first" || fail 'lintian'
    fi

    # All files belong to root, and all except the configuration are readable by every user.
    dpkg-deb --fsys-tarfile "$first" | tar --list --verbose --numeric-owner >"$WORK/contents"
    awk '$1 !~ /^(drwxr-xr-x|-rw-r--r--|lrwxrwxrwx)$/ || $2 != "0/0" { print $1, $2, $6 }' "$WORK/contents" | LC_ALL=C sort >"$WORK/special"
    [ "$(cat "$WORK/special")" = '-rw-r----- 0/0 ./etc/banmesh/config.yaml
-rwxr-xr-x 0/0 ./usr/bin/banmesh' ] || { cat "$WORK/special" >&2; fail 'permissions in the package'; }
    for name in usr/lib/systemd/system/banmesh.service usr/lib/systemd/system/banmesh@.service usr/lib/sysusers.d/banmesh.conf \
        usr/lib/tmpfiles.d/banmesh.conf usr/share/man/man1/banmesh.1.gz usr/share/bash-completion/completions/banmesh \
        usr/share/doc/banmesh/examples/banmesh.yaml usr/share/doc/banmesh/examples/haproxy/haproxy.cfg \
        usr/share/doc/banmesh/examples/prometheus/banmesh.rules.yaml usr/share/doc/banmesh/examples/grafana/banmesh.json \
        usr/share/doc/banmesh/copyright; do
        awk '{ print $6 }' "$WORK/contents" | grep -qxF "./$name" || fail "the package has no $name"
    done

    start_debian "banmesh-deb-$$"
    files() { inside find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /dev -o -path /var/log \) -prune -o -print | LC_ALL=C sort; }
    for name in first second; do podman cp "$WORK/$name.deb" "$host:/tmp/$name.deb"; done
    before=$(files)

    # After the installation the service runs.
    inside env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends /tmp/first.deb >"$WORK/dpkg" 2>&1 || { cat "$WORK/dpkg" >&2; inside journalctl -u banmesh --no-pager >&2; fail 'apt-get install'; }
    inside systemctl is-active --quiet banmesh || { inside systemctl status --no-pager banmesh >&2; fail 'the service does not run'; }
    inside systemctl is-enabled --quiet banmesh || fail 'the service is not enabled'
    inside banmesh ping --ready >/dev/null || fail 'not ready'
    [ "$(inside stat -c '%a %U %G %n' /etc/banmesh /etc/banmesh/config.yaml /var/lib/banmesh)" = '750 root banmesh /etc/banmesh
640 root banmesh /etc/banmesh/config.yaml
700 banmesh banmesh /var/lib/banmesh' ] || fail "$(inside stat -c '%a %U %G %n' /etc/banmesh /etc/banmesh/config.yaml /var/lib/banmesh)"
    inside getent passwd banmesh | grep -q '/usr/sbin/nologin$' || fail 'the user'
    inside systemd-analyze verify --man=no banmesh.service banmesh@primary.service >"$WORK/verify" 2>&1 || true
    [ ! -s "$WORK/verify" ] || { cat "$WORK/verify" >&2; fail 'systemd-analyze verify'; }
    say "deb: $(inside systemd-analyze security banmesh.service --no-pager 2>/dev/null | tail -n 1)"
    main_pid() { inside systemctl show -p MainPID --value "${1:-banmesh}"; }
    inside grep -q 'CapBnd:.*0000000000000400' "/proc/$(main_pid)/status" || fail 'more than CAP_NET_BIND_SERVICE'
    inside ss -Hlun 'sport = :514' | grep -q . || fail 'port 514 is not bound'

    # A ban by log lines, a ban by command, a reload, and a refused reload.
    for _ in 1 2 3 4 5 6; do
        inside bash -c "echo \"<22>\$(LC_ALL=C date '+%b %e %T') mail1 dovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in \$RANDOM secs): user=<alice>, method=PLAIN, rip=198.51.100.7, lip=192.0.2.1, session=<\$RANDOM>\" >/dev/udp/127.0.0.1/514"
    done
    is_banned() { inside banmesh why "$1" --json | grep -q '"banned": *true'; }
    poll 20 is_banned 198.51.100.7 || fail 'no ban by log lines'
    inside banmesh ban 198.51.100.8 --for 1h >/dev/null
    inside bash -c "printf 'ban:\n  max_attempts: 4\n' >>/etc/banmesh/config.yaml"
    pid=$(main_pid)
    inside systemctl reload banmesh || { inside journalctl -u banmesh --no-pager >&2; fail 'reload'; }
    reloaded() { inside journalctl -u banmesh --no-pager | grep -qi 'reload\|configuration'; }
    poll 20 reloaded || fail 'the reload is not logged'
    inside bash -c "echo 'nonsense: 1' >>/etc/banmesh/config.yaml"
    if inside systemctl reload banmesh 2>/dev/null; then fail 'a reload with an invalid configuration succeeds'; fi
    [ "$(main_pid)" = "$pid" ] || fail 'a refused reload stopped the node'
    inside sed -i '/^nonsense/d' /etc/banmesh/config.yaml

    # An instance of the template.
    inside bash -c 'umask 027; printf "spoa: {address: 127.0.0.1, port: 12346}\nsyslog: {address: \"127.0.0.1:5514\"}\napi: {enabled: false}\nprometheus: {enabled: false}\n" >/etc/banmesh/second.yaml; chgrp banmesh /etc/banmesh/second.yaml'
    inside systemctl start banmesh@second || { inside journalctl -u banmesh@second --no-pager >&2; fail 'the template'; }
    pid=$(main_pid banmesh@second)

    # An upgrade to a version that refuses the configuration stops no node.
    inside bash -c "echo 'nonsense: 1' >>/etc/banmesh/config.yaml"
    before_upgrade=$(main_pid)
    inside dpkg -i --force-confdef /tmp/second.deb >"$WORK/dpkg" 2>&1 || { cat "$WORK/dpkg" >&2; fail 'the upgrade with an invalid configuration'; }
    [ "$(main_pid)" = "$before_upgrade" ] || fail 'an upgrade with an invalid configuration stopped the node'
    grep -q 'banmesh.service keeps running the old version' "$WORK/dpkg" && grep -q 'nonsense: unknown key' "$WORK/dpkg" ||
        { cat "$WORK/dpkg" >&2; fail 'an upgrade with an invalid configuration does not report it'; }
    [ "$(main_pid banmesh@second)" != "$pid" ] ||
        { cat "$WORK/dpkg" >&2; inside journalctl -u banmesh@second --no-pager >&2; fail 'the other node, whose configuration is valid, was not restarted'; }
    inside sed -i '/^nonsense/d' /etc/banmesh/config.yaml
    pid=$(main_pid banmesh@second)

    # An upgrade restarts the nodes and keeps configuration and bans.
    inside dpkg -i --force-confdef /tmp/second.deb >"$WORK/dpkg" 2>&1 || { cat "$WORK/dpkg" >&2; fail 'the upgrade'; }
    inside systemctl is-active --quiet banmesh banmesh@second || fail 'does not run after the upgrade'
    [ "$(main_pid banmesh@second)" != "$pid" ] || fail 'the upgrade did not restart the instance of the template'
    [ "$(main_pid)" != "$before_upgrade" ] || fail 'the upgrade did not restart the node'
    inside grep -q 'max_attempts: 4' /etc/banmesh/config.yaml || fail 'the upgrade lost the configuration'
    for name in 198.51.100.7 198.51.100.8; do is_banned $name || fail "the upgrade lost the ban of $name"; done

    # The watchdog ends a hanging node, and systemd restarts it.
    inside bash -c 'mkdir -p /run/systemd/system/banmesh.service.d && printf "[Service]\nWatchdogSec=5s\nTimeoutAbortSec=1s\n" >/run/systemd/system/banmesh.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart banmesh'
    pid=$(main_pid)
    # A stopped process does not end on SIGABRT (TimeoutAbortSec).
    inside bash -c "kill -STOP $pid"
    other_pid() { [ "$(main_pid)" != "$pid" ] && inside banmesh ping --ready; }
    poll 60 other_pid || fail 'the watchdog did not end a hanging node'
    is_banned 198.51.100.8 || fail 'the restart lost a ban'

    # It stops in time and in order: the agent drains first.
    inside systemctl stop banmesh
    [ "$(inside systemctl show -p Result --value banmesh)" = success ] || fail 'does not stop cleanly'
    inside rm -rf /run/systemd/system/banmesh.service.d
    inside systemctl daemon-reload
    inside systemctl start banmesh

    # Removal stops the nodes and keeps configuration and bans. A purge removes everything.
    inside dpkg -r banmesh >/dev/null 2>&1
    if inside bash -c 'ls -l /proc/[0-9]*/exe 2>/dev/null | grep /usr/bin/banmesh'; then fail 'runs after its removal'; fi
    inside test -f /etc/banmesh/config.yaml -a -d /var/lib/banmesh || fail 'removal deleted the configuration or the bans'
    inside dpkg -P banmesh >"$WORK/dpkg" 2>&1 || { cat "$WORK/dpkg" >&2; fail 'the purge'; }
    diff <(printf '%s\n' "$before") <(files) >"$WORK/left" || true
    # Ignore files of dpkg and apt, and backups of the files of users.
    grep -vE '^[0-9,]+[acd][0-9,]+$|/var/lib/(dpkg|apt)/|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$|/var/cache/' "$WORK/left" >"$WORK/left2" || true
    [ ! -s "$WORK/left2" ] || { cat "$WORK/left2" >&2; fail 'the purge left files'; }

    # The installation reports that another program has the port. A configuration that the operator removed is not restored.
    inside systemd-run --quiet --unit=other systemd-socket-activate --datagram --listen=127.0.0.1:514 cat
    is_taken() { inside ss -Hlun 'sport = :514' | grep -q .; }
    poll 20 is_taken || fail 'the other program does not listen'
    inside dpkg -i /tmp/first.deb >"$WORK/dpkg" 2>&1 || { cat "$WORK/dpkg" >&2; fail 'the installation with the port in use'; }
    grep -q '127.0.0.1:514/udp is in use by another program' "$WORK/dpkg" || { cat "$WORK/dpkg" >&2; fail 'the port in use is not reported'; }
    inside systemctl stop other
    inside systemctl restart banmesh
    pid=$(main_pid)
    inside rm /etc/banmesh/config.yaml
    inside dpkg -i /tmp/second.deb >"$WORK/dpkg" 2>&1 || { cat "$WORK/dpkg" >&2; fail 'the upgrade without a configuration'; }
    inside systemctl is-active --quiet banmesh && [ "$(main_pid)" != "$pid" ] || fail 'does not run without a configuration'
    if inside test -e /etc/banmesh/config.yaml; then fail 'the upgrade restored a removed configuration'; fi

    say "deb: $(stat -c %s "$first") bytes; installed, run, reloaded, upgraded and purged under systemd $(inside systemctl --version | sed -n '1s/systemd \([^ ]*\).*/\1/p')"
}
