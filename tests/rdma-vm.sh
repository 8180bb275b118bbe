#!/usr/bin/env bash
# Runs one command on a machine that has RDMA devices and netem, without either here: a stock Debian
# kernel under QEMU's software emulation, over this machine's files. Needs no root and no /dev/kvm.
#
#   tests/rdma-vm.sh [OPTIONS] -- COMMAND…
#
#   --device LIST    rxe (RoCE, the default), siw (iWARP), none, or a comma list of them
#   --netdev NAME    dummy: one interface (the default). pair: veth0 and veth1 with a device on each;
#                    what they say to each other passes both, so that netem and link down act on it
#   --share DIR      the guest may write there; everything else is thrown away (repeatable)
#   --env NAME=VAL   in the command's environment (repeatable)
#   --timeout SEC    of the whole run (300)
#   --mem MIB        of the guest (1024)
#   --smp N          its CPUs (2)
#   --cache DIR      what was downloaded ($KVLANE_VM_CACHE, else ~/.cache/kvlane-vm)
#   --prepare        only fill the cache
#
# The command finds RDMA_DEVICES, RDMA_IP and RDMA_VM=1 in its environment. Exit status: the
# command's; 77: this machine cannot do it (said why); 124: timeout; 125: the machine died; 126: the
# guest could not set itself up; 2: usage.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
die() { echo "rdma-vm: $2" >&2; exit "$1"; }
skip() { echo "SKIPPED: $1"; exit 77; }

devices=rxe netdev=dummy timeout=300 mem=1024 smp=2 prepare=0
cache=${KVLANE_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/kvlane-vm}
shares=() envs=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --device | --netdev | --share | --env | --timeout | --mem | --smp | --cache)
      [[ $# -ge 2 ]] || die 2 "$1 needs a value" ;;
  esac
  case "$1" in
    --device) devices=$2; shift ;;
    --netdev) netdev=$2; shift ;;
    --share) shares+=("$(realpath -e -- "$2")"); shift ;;
    --env) envs+=("$2"); shift ;;
    --timeout) timeout=$2; shift ;;
    --mem) mem=$2; shift ;;
    --smp) smp=$2; shift ;;
    --cache) cache=$2; shift ;;
    --prepare) prepare=1 ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) die 2 "unknown option $1; see --help" ;;
  esac
  shift
done
[[ $devices =~ ^(none|(rxe|siw)(,(rxe|siw))?)$ ]] || die 2 "--device is rxe, siw, none or a list"
[[ $netdev =~ ^(dummy|pair)$ ]] || die 2 "--netdev is dummy or pair"
[[ $timeout$mem$smp =~ ^[0-9]+$ ]] || die 2 "--timeout, --mem and --smp are numbers"
[[ $prepare -eq 1 || $# -gt 0 ]] || die 2 "no command; see --help"

[[ $(uname -m) == x86_64 ]] || skip "the virtual machine is one of x86_64"
for need in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio \
  modprobe:kmod xz:xz-utils rdma:iproute2 dpkg-deb:dpkg apt-get:apt; do
  command -v "${need%%:*}" >/dev/null || skip "no ${need%%:*} (package ${need#*:}, tools/setup.sh --tests)"
done
mkdir -p "$cache"
cache=$(realpath "$cache")

# ---- the kernel: downloaded once, unpacked without installing

exec 9>"$cache/.lock" # runs beside each other share the cache
flock 9

# A failed download is a machine without network, which is no failure of what is tested.
download() { # DIR PACKAGE…
  local dir=$1
  shift
  mkdir -p "$dir"
  (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download "$@") >"$cache/download.log" 2>&1 || {
    tail -n 3 "$cache/download.log" >&2
    skip "cannot download $* (no network, or apt-get update is due)"
  }
}

# What was once downloaded is kept, although a newer kernel may be out: it must work without network.
release=$(cat "$cache/release" 2>/dev/null || true)
if [[ -z $release ]]; then
  release=$(apt-cache depends linux-image-amd64 2>/dev/null |
    sed -n 's/^ *Depends: linux-image-\([0-9].*\)/\1/p' | head -n 1)
  [[ -n $release ]] || skip "no package linux-image-amd64 to download (Debian only; apt-get update)"
fi
kernel=$cache/$release

prepare_kernel() {
  local work=$kernel.new
  rm -rf "$work"
  download "$work/deb" "linux-image-$release"
  mkdir -p "$work/tree"
  # A few of 390 MB. Not every kernel has each folder, which tar takes for an error.
  dpkg-deb --fsys-tarfile "$work"/deb/linux-image-*.deb | tar -x -C "$work/tree" --wildcards \
    './boot/vmlinuz-*' '*/modules.builtin*' '*/modules.order' '*/kernel/drivers/infiniband/*' \
    '*/kernel/drivers/virtio/*' '*/kernel/drivers/char/*' '*/kernel/drivers/net/*.ko*' \
    '*/kernel/net/9p/*' '*/kernel/net/core/*' '*/kernel/net/sched/*' '*/kernel/net/ipv[46]/*' \
    '*/kernel/fs/9p/*' '*/kernel/fs/fscache/*' '*/kernel/fs/netfs/*' '*/kernel/fs/overlayfs/*' \
    '*/kernel/fs/configfs/*' '*/kernel/lib/*' '*/kernel/crypto/*' '*/kernel/arch/x86/crypto/*' \
    2>"$work/tar.log" || true
  [[ -d $work/tree/lib/modules/$release/kernel/drivers/infiniband ]] || die 126 "cannot unpack the kernel"
  depmod -b "$work/tree" "$release" # the package's post-installation would do that
  unpack_vmlinux "$work/tree/boot/vmlinuz-$release" "$work/vmlinux"
  rm -rf "$work/deb" "$kernel"
  mv "$work" "$kernel"
  echo "$release" >"$cache/release"
}

# QEMU starts an ELF kernel directly; one that must first unpack itself takes twice as long to boot.
unpack_vmlinux() { # VMLINUZ OUT
  local at
  # shellcheck disable=SC2013  # numbers
  for at in $(grep -aobP '\xFD7zXZ\x00' "$1" | cut -d: -f1); do
    tail -c +$((at + 1)) "$1" | xz -dc >"$2" 2>/dev/null || true # other things follow
    [[ $(head -c 4 "$2") == $'\x7fELF' ]] && return
  done
  cp "$1" "$2"
}

# No Debian kernel has siw, but linux-source has its code.
prepare_siw() {
  local build=$kernel/siw headers=$kernel/siw/usr/src/linux-headers-$release series parts
  for need in make gcc; do command -v "$need" >/dev/null || skip "no $need: siw must be built"; done
  series=$(cut -d. -f1,2 <<<"$release")
  rm -rf "$build"
  mapfile -t parts < <(apt-cache depends "linux-headers-$release" |
    sed -n 's/^ *Depends: \(linux-\(headers-.*-common\|kbuild-\).*\)/\1/p')
  download "$build/deb" "linux-headers-$release" "${parts[@]}" "linux-source-$series"
  for deb in "$build"/deb/linux-{headers,kbuild}-*.deb; do dpkg-deb -x "$deb" "$build"; done
  sed -i "s#^include /usr/src#include $build/usr/src#" "$headers/Makefile"
  mkdir "$build/src"
  dpkg-deb --fsys-tarfile "$build"/deb/linux-source-*.deb |
    tar -xO "./usr/src/linux-source-$series.tar.xz" |
    tar -xJ -C "$build/src" --strip-components=4 "linux-source-$series/drivers/infiniband/sw/siw"
  # BTF of modules would want pahole and a vmlinux that the headers do not have.
  make -s -C "$headers" M="$build/src/siw" CONFIG_RDMA_SIW=m CONFIG_DEBUG_INFO_BTF_MODULES= modules \
    >"$kernel/siw.log" 2>&1 || { tail "$kernel/siw.log" >&2; die 126 "siw does not build"; }
  strip --strip-debug -o "$kernel/siw.ko" "$build/src/siw/siw.ko"
  rm -rf "$build"
}

[[ -e $kernel/vmlinux ]] || prepare_kernel
[[ $devices != *siw* || -e $kernel/siw.ko ]] || prepare_siw
[[ $prepare -eq 0 ]] || { du -sh "$kernel"; exit 0; }

# ---- the guest's first file system: busybox, modules, what to do

work=$(mktemp -d)
vm=
trap '[[ -z $vm ]] || kill "$vm" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 143' TERM HUP
trap 'exit 130' INT
root=$work/root
mkdir -p "$root"/{bin,proc,sys,dev,modules,lower,upper,host}
cp -L "$(command -v busybox)" "$root/bin/busybox"

# crc32 and crc32c are asked for by name when rxe starts: no dependency of a module leads to them.
modules=(virtio_pci virtio_console 9p 9pnet_virtio overlay crc32_generic crc32c_generic)
[[ $devices == *rxe* ]] && modules+=(rdma_rxe)
[[ $devices == *siw* ]] && modules+=(ib_core iw_cm libcrc32c)
[[ $devices != none ]] && modules+=(ib_uverbs rdma_ucm)
if [[ $netdev == pair ]]; then modules+=(veth sch_netem); else modules+=(dummy); fi
for module in "${modules[@]}"; do
  modprobe -d "$kernel/tree" -S "$release" --show-depends "$module" 2>/dev/null || true
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/files"
while read -r file; do
  name=$(basename "$file" .xz)
  if [[ $file == *.xz ]]; then xz -dc "$file"; else cat "$file"; fi >"$root/modules/$name"
  echo "$name"
done <"$work/files" >"$root/modules/list"
if [[ $devices == *siw* ]]; then
  cp "$kernel/siw.ko" "$root/modules/"
  echo siw.ko >>"$root/modules/list"
fi
exec 9>&-

quote() { local s; for s; do printf "'%s' " "${s//\'/\'\\\'\'}"; done; }
{
  for pair in "${envs[@]}"; do printf 'export '; quote "$pair"; echo; done
  while IFS= read -r -d '' pair; do
    case $pair in
      KVLANE_* | GTEST_* | IBV_* | RDMAV_* | FI_* | [A-Z]*SAN_OPTIONS=*) printf 'export '; quote "$pair"; echo ;;
    esac
  done < <(env -0)
  printf 'cd '; quote "$PWD"; printf '\nexec '; quote "$@"; echo
} >"$root/command"
{
  printf 'devices=%s netdev=%s shares=%s\n' "'${devices//,/ }'" "$netdev" "${#shares[@]}"
  for i in "${!shares[@]}"; do printf 'share%d=' "$i"; quote "${shares[$i]}"; echo; done
} >"$root/config"
cp "$(dirname "$0")/support/rdma-vm-init.sh" "$root/init"
chmod 755 "$root/init"
# Not compressed: unpacking would be emulated work.
(cd "$root" && find . -print0 | cpio -0 -o -H newc --quiet --owner=0:0) >"$work/initramfs"

# ---- run

# All that TCG has is AVX2: programs that take AVX-512 unasked die there.
qemu=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -M pc
  -accel 'tcg,thread=multi' -cpu max -smp "$smp" -m "$mem"
  -kernel "$kernel/vmlinux" -initrd "$work/initramfs"
  -append 'console=ttyS0 quiet panic=-1 oops=panic nokaslr mitigations=off random.trust_cpu=on'
  -chardev "file,id=console,path=$work/console" -serial chardev:console -device virtio-serial-pci
  -chardev 'file,id=out,path=/dev/stdout' -device 'virtserialport,chardev=out,name=out'
  -chardev "file,id=result,path=$work/result" -device 'virtserialport,chardev=result,name=result'
  -fsdev 'local,id=root,path=/,security_model=none,readonly=on,multidevs=remap'
  -device 'virtio-9p-pci,fsdev=root,mount_tag=root')
for i in "${!shares[@]}"; do
  qemu+=(-fsdev "local,id=share$i,path=${shares[$i]//,/,,},security_model=none,multidevs=remap"
    -device "virtio-9p-pci,fsdev=share$i,mount_tag=share$i")
done
# A file on a pipe to cat: QEMU's own stdio drops what the guest writes once its input has ended. It
# ends when this script does, however that comes.
mkfifo "$work/out"
cat "$work/out" &
copier=$!
setpriv --pdeathsig KILL timeout --foreground --kill-after=5 "$timeout" \
  setpriv --pdeathsig KILL "${qemu[@]}" </dev/null >"$work/out" 2>"$work/errors" &
vm=$!
status=0
wait "$vm" || status=$?
vm=
wait "$copier" || true
result=$(cat "$work/result" 2>/dev/null || true)
if [[ $result =~ ^exit=([0-9]+)\ (.*)$ ]]; then
  status=${BASH_REMATCH[1]}
  [[ -z ${BASH_REMATCH[2]} ]] || { echo "rdma-vm: guest: ${BASH_REMATCH[2]}" >&2; tail "$work/console" >&2; }
  exit "$status"
fi
tail -n 30 "$work/errors" "$work/console" >&2 || true
[[ $status -ne 124 && $status -ne 137 ]] || die 124 "not done after $timeout s"
die 125 "the machine ended without a result"
