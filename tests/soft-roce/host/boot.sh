# One boot of the guest. Sourced by `run`.

# boot JOB: starts the guest on what JOB/start says. The guest's standard output and error become this process's. Sets $verdict:
# `ended` (JOB/status holds the command's status), `dead`, or `late`.
boot() {
    local job=$1
    case $ACCEL in
    auto)
        # A processor without these flags may still have /dev/kvm, in front of something that boots no kernel.
        if [ -w /dev/kvm ] && grep -qE '^flags.* (vmx|svm)( |$)' /proc/cpuinfo; then
            boot_with kvm "$job"
            if [ ! -e "$job/up" ] && [ "$verdict" != ended ]; then
                say "the guest does not come up under KVM; once more without it"
                boot_with tcg "$job"
            fi
        else
            boot_with tcg "$job"
        fi
        ;;
    *) boot_with "$ACCEL" "$job" ;;
    esac
}

boot_with() {
    local accel=$1 job=$2 machine started=$SECONDS patience
    rm -f "$job"/{out,err,status,up,console}
    mkfifo "$job/out" "$job/err"
    case $accel in
    kvm)
        machine=(-accel kvm -cpu host)
        patience=30
        ;;
    # Without `rep movsb` made fast, which costs the emulator a slow step for each byte: copies are 2.5 times as fast.
    tcg)
        machine=(-accel 'tcg,thread=multi,tb-size=512' -cpu 'max,-la57,-smap,-smep,-pku,-erms,-fsrm')
        patience=$TIMEOUT
        ;;
    *) usage "--accel is kvm or tcg, not \`$accel\`" ;;
    esac
    local share='security_model=none,multidevs=remap'
    machine+=(
        -smp "$CPUS" -m "$MEMORY" -nodefaults -no-user-config -display none -no-reboot -monitor none
        -kernel "$kernel/boot/vmlinuz-$version" -initrd "$initrd"
        -append 'console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr tsc=reliable'
        -serial "file:$job/console"
        -device virtio-serial
        -chardev "file,id=out,path=$job/out" -device 'virtserialport,chardev=out,name=out'
        -chardev "file,id=err,path=$job/err" -device 'virtserialport,chardev=err,name=err'
        -virtfs "local,path=/,mount_tag=host,readonly=on,$share"
        -virtfs "local,path=$kernel,mount_tag=kernel,readonly=on,$share"
        -virtfs "local,path=$job,mount_tag=job,$share"
    )
    [ -z "$OUT" ] || machine+=(-virtfs "local,path=$OUT,mount_tag=out,$share")
    cat "$job/out" &
    local out=$!
    cat "$job/err" >&2 &
    local err=$!
    qemu-system-x86_64 "${machine[@]}" </dev/null 2>"$job/qemu" &
    qemu=$!
    verdict=ended
    while kill -0 "$qemu" 2>/dev/null; do
        if ((SECONDS - started >= TIMEOUT)); then
            verdict=late
            kill "$qemu"
            break
        elif [ ! -e "$job/up" ] && ((SECONDS - started >= patience)); then
            verdict=dead
            kill "$qemu"
            break
        fi
        sleep 0.1
    done
    wait "$qemu" 2>/dev/null || :
    qemu=
    # An emulator that never opened its ends would leave the readers waiting.
    : <>"$job/out" <>"$job/err"
    wait "$out" "$err" 2>/dev/null || :
    [ "$verdict" != ended ] || [ -s "$job/status" ] || verdict=dead
}

# Why a guest is dead, as far as can be seen from outside.
last_words() {
    local job=$1
    grep -v '^qemu-system-x86_64: terminating on signal' "$job/qemu" >&2 || :
    if [ -s "$job/console" ]; then
        say "the last lines of the guest's console:"
        tail -n 40 "$job/console" | tr -d '\r' >&2
    fi
}
