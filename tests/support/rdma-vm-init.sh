#!/bin/busybox sh
# The first process of the guest of tests/rdma-vm.sh: file systems, network, RDMA devices, the command.
# shellcheck shell=dash disable=SC1091,SC2154,SC2086
# (/config is written by rdma-vm.sh; lists of words are meant as such)
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
. /config
while read -r module; do
  insmod "/modules/$module" || echo "insmod $module failed"
done </modules/list

port() { # of virtio, by name
  for p in /sys/class/virtio-ports/*; do
    [ "$(cat "$p/name")" = "$1" ] && echo "/dev/${p##*/}"
  done
}
result=$(port result)
finish() { # STATUS [WHY]
  echo "exit=$1 $2" >"$result"
  sync
  poweroff -f
}

# The host's files, read-only, below a layer that is thrown away.
o9p=trans=virtio,version=9p2000.L,msize=524288
mount -t 9p -o $o9p,cache=loose,ro root /lower || finish 126 "no 9p"
mount -t tmpfs -o mode=755 upper /upper
mkdir /upper/up /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work root /host ||
  finish 126 "no overlay"
mount -t proc proc /host/proc
mount -t sysfs sys /host/sys
mount -t tmpfs -o mode=755 run /host/run
mount -o bind /dev /host/dev
mkdir -p /host/dev/shm
mount -t tmpfs -o mode=1777 shm /host/dev/shm
i=0
while [ "$i" -lt "$shares" ]; do
  eval "folder=\$share$i"
  mkdir -p "/host$folder"
  mount -t 9p -o $o9p,cache=mmap "share$i" "/host$folder" || finish 126 "no share $folder"
  i=$((i + 1))
done

# iproute2's by its whole name: busybox would take its own.
host_ip=/usr/sbin/ip
[ -x /host$host_ip ] || host_ip=/sbin/ip
ip_() { chroot /host $host_ip "$@"; }
ip_ link set lo up
if [ "$netdev" = dummy ]; then
  ip_ link show dummy0 >/dev/null 2>&1 || ip_ link add dummy0 type dummy
  ip_ link set dummy0 mtu 9000 up # the RDMA path MTU is 4096 then, not 1024
  ip_ addr add 10.77.0.1/24 dev dummy0
  interfaces=dummy0 address=10.77.0.1
else
  # Both addresses are ours, so the kernel would not send between them over the wire, nor answer
  # ARP: rules stand before the local table, and neighbours are given.
  ip_ link add veth0 type veth peer name veth1
  for i in 0 1; do
    ip_ link set veth$i mtu 9000 up
    ip_ addr add 10.77.1.$((i + 1))/24 dev veth$i
  done
  for i in all veth0 veth1; do
    echo 1 >/proc/sys/net/ipv4/conf/$i/accept_local
    echo 0 >/proc/sys/net/ipv4/conf/$i/rp_filter
  done
  for i in 0 1; do
    me=10.77.1.$((i + 1)) you=10.77.1.$((2 - i))
    ip_ neigh replace $you lladdr "$(cat /sys/class/net/veth$((1 - i))/address)" nud permanent dev veth$i
    ip_ route add $you dev veth$i src $me table 10$i
    ip_ rule add pref 1 iif veth$i lookup local
    ip_ rule add pref 2 oif veth$i to $you lookup 10$i
    ip_ rule add pref 3 from $me to $you lookup 10$i
  done
  ip_ rule add pref 100 lookup local
  ip_ rule del pref 0
  interfaces="veth0 veth1" address=10.77.1.1
fi

uptime_s() {
  read -r up _ </proc/uptime
  echo "${up%%.*}"
}
until_true() { # SECONDS COMMAND…: the kernel does it in its own time
  end=$(($(uptime_s) + $1))
  shift
  until "$@"; do
    [ "$(uptime_s)" -lt $end ] || return 1
  done
}
ended() { ! kill -0 "$1" 2>/dev/null; }
all=
for type in $devices; do
  [ "$type" = none ] && continue
  n=0
  for interface in $interfaces; do
    chroot /host rdma link add $type$n type $type netdev $interface ||
      finish 126 "rdma link add $type$n failed"
    all="$all $type$n"
    folder=/sys/class/infiniband/$type$n/ports/1
    until_true 20 grep -q ACTIVE $folder/state || finish 126 "$type$n is not active"
    # IPv4-mapped; the first one is made from the MAC address.
    [ "$type" = siw ] || until_true 20 grep -qs :ffff:0a4d: $folder/gids/* ||
      finish 126 "$type$n has no GID of its address"
    n=$((n + 1))
  done
done
export RDMA_VM=1 RDMA_DEVICES="${all# }" RDMA_IP=$address

# The command gets a pipe: a port can be opened once only, and programs reopen their output.
mkfifo /pipe
cat </pipe >"$(port out)" &
copier=$!
ulimit -l unlimited
ulimit -c 0
cp /command /host/run/command
chroot /host /bin/sh /run/command </dev/null >/pipe 2>&1
status=$?
# What it left behind may hold the pipe.
until_true 2 ended $copier
finish $status
