# The machine whose RDMA-CM identifiers are written down: what the kernel answers, and what rdma(8) says, into /host/recorded.
. /host/guest.sh
mkdir -p /host/recorded
uname -r
join_fabric 1 || exit
index=$(rdma dev | sed -n 's/^\([0-9]*\): rxe0:.*/\1/p')
dump() { python3 /host/cm_id.py "$1" >"/host/recorded/$2.hex"; }
record() {
    dump "$index" "$1"
    rdma -d resource show cm_id >"/host/recorded/$1.txt"
    rdma -d -j -p resource show cm_id >"/host/recorded/$1.json"
    cat "/host/recorded/$1.txt"
}
there_are() { [ "$(rdma resource show cm_id | grep -c "$2")" -eq "$1" ]; }

dump 99 no_device
dump "$index" none
rping -s &
patiently there_are 1 LISTEN || exit
record wildcard_v4
rping -s -a :: -p 7175 &
patiently there_are 2 LISTEN || exit
rping -s -a 10.9.0.1 -p 7176 &
patiently there_are 3 LISTEN || exit
rping -s -a fd09::1 -p 7177 &
patiently there_are 4 LISTEN || exit
ib_send_bw -R -p 18515 -d rxe0 >/dev/null &
patiently there_are 5 LISTEN || exit
udaddy -b 10.9.0.1 >/dev/null &
patiently there_are 6 LISTEN || exit
modprobe rds_rdma
patiently there_are 8 LISTEN || exit
record listeners
rping -s -P -a 10.9.0.1 -p 7180 >/dev/null &
patiently there_are 9 LISTEN || exit
patiently ask ping -c 1 -W 2 10.9.0.1 >/dev/null || exit
ask 'timeout 60 rping -c -a 10.9.0.1 -p 7180 -C 100000 >/dev/null 2>&1 & sleep 1'
patiently there_are 1 CONNECT || exit
record connected
touch /host/over
