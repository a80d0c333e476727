# Shared by the scripts that run inside the virtual machines: an address, an RDMA device, and jobs for the other machine.

# 10.9.0.N and fd09::N on eth0, and Soft-RoCE on it.
join_fabric() {
    local number=$1
    ip link set eth0 address "52:54:00:00:01:0$number" || return
    ip address add "10.9.0.$number/24" dev eth0 && ip link set eth0 up || return
    ip address add "fd09::$number/64" dev eth0 nodad || return
    modprobe -a rdma_rxe rdma_ucm ib_uverbs && rdma link add rxe0 type rxe netdev eth0 || return
    mkdir -p /dev/infiniband
    # There is no udev.
    local device
    for device in /sys/class/infiniband_verbs/uverbs*/dev /sys/class/misc/rdma_cm/dev; do
        local name=${device%/dev}
        name=/dev/infiniband/${name##*/}
        [ -e "$name" ] || mknod "$name" c $(tr : ' ' <"$device")
    done
}

# Tries a command again and again, for a minute or two: emulated machines are slow, and nothing here is about time.
patiently() {
    local try
    for try in {1..200}; do
        if "$@"; then return 0; fi
        sleep 0.5
    done
    echo "never: $*"
    return 1
}

# Has the other machine run a command, and says what it said; its exit status.
jobs=0
ask() {
    jobs=$((jobs + 1))
    local job=/host/job-$jobs
    echo "$*" >"$job.new" && mv "$job.new" "$job.sh"
    patiently test -e "$job.status" || return
    cat "$job.out"
    return "$(cat "$job.status")"
}
