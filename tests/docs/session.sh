# Before the commands of a page: what its reader has, and how they are run here.
exec 2>&1
export NO_COLOR=1 PYTHONDONTWRITEBYTECODE=1 GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b

# As a terminal shows it: a bar, which is gone in the end, stands for the lines of progress. An error stays.
firstdiff() {
    command firstdiff "$@" 2> .progress
    local code=$?
    if [ $code -gt 1 ]; then cat .progress; fi
    return $code
}

# The machine is set up: the tests run.
make() {
    command make -s -o setup "$@"
}

# The C engine of examples/ as a program of the reader's: model, plan, and a folder for the trace.
my_engine() {
    test -e target/c_engine || make examples
    target/c_engine "$1" "$2" "${3:-mine}" "${@:4}"
}

# A report as a terminal of that many columns shows it.
in_columns() {
    (set -o pipefail; script -qec "stty rows 50 cols $1; $2 2>/dev/null" /dev/null | tr -d '\r')
}

# A copy of one of our kernels in a folder of the reader's, changed by sed.
kernel() {
    mkdir -p "$1"
    cp "kernels/$2" kernels/common.cuh "$1"
    sed -i "$3" "$1/$2"
}

# Our norm, whose sum over a block lacks its second barrier.
without_second_barrier() {
    kernel "$1" rms_norm.cu ''
    sed -i "$(grep -n __syncthreads "$1/common.cuh" | sed -n '2s/:.*//p')d" "$1/common.cuh"
}

# A command that watches: after its first verdict a file is changed, after its second it is interrupted.
watched() {
    local change="$1" log=.watched
    shift
    set -m
    command "$@" > $log 2>&1 &
    until grep -q 'waiting for a save' $log; do sleep 0.1; done
    eval "$change"
    until [ "$(grep -c 'waiting for a save' $log)" = 2 ]; do sleep 0.1; done
    kill -INT %%
    wait
    set +m
    cat $log
}

# A command beside two RPC servers of this machine, which $RPC names.
with_servers() {
    local port servers=() ports=() code
    ports=($(python3 -c 'import socket
ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*[port.getsockname()[1] for port in ports])'))
    for port in "${ports[@]}"; do
        setpriv --pdeathsig KILL firstdiff rpc-server --threads 1 --port "$port" > /dev/null &
        servers+=($!)
        until (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do sleep 0.1; done
    done
    RPC=127.0.0.1:${ports[0]},127.0.0.1:${ports[1]}
    eval "$1"
    code=$?
    kill "${servers[@]}"
    wait "${servers[@]}" 2> /dev/null
    return $code
}
