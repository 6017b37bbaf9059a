# The guest's kernel: Debian's, downloaded once and unpacked into the cache, never installed; and an initial RAM disk that mounts the
# host's files. Sourced by `run`.

# Modules which the initial RAM disk loads, and those which `guest/start` loads from $kernel/lib/modules.
EARLY="virtio_pci virtio_console 9pnet_virtio 9p overlay"
LATE="crc32_generic rdma_rxe rdma_ucm dummy veth sch_netem"

# The folders of a kernel package that hold these and all that they need.
PARTS="arch/x86/crypto crypto lib drivers/infiniband drivers/virtio drivers/char drivers/net/dummy.ko* drivers/net/veth.ko*
    drivers/net/virtio_net.ko* drivers/net/net_failover.ko* fs/9p fs/netfs fs/fscache fs/overlayfs fs/configfs
    net/9p net/core net/ipv4 net/ipv6 net/sched"

# Sets $kernel (the folder), $version and $initrd.
prepare_kernel() {
    mkdir -p "$CACHE" || lacking "cannot make the cache folder $CACHE; name another in KVRAIL_CACHE"
    exec 9>"$CACHE/lock"
    flock 9
    kernel=${KVRAIL_GUEST_KERNEL:-$CACHE/kernel}
    if [ -z "${KVRAIL_GUEST_KERNEL:-}" ] && [ ! -e "$kernel/complete" ]; then
        download_kernel
    fi
    version=$(ls "$kernel/lib/modules" 2>/dev/null | head -n 1 || :)
    [ -n "$version" ] && [ -e "$kernel/boot/vmlinuz-$version" ] ||
        lacking "no kernel in $kernel: boot/vmlinuz-VERSION and lib/modules/VERSION should be there"
    initrd=$CACHE/initrd-$version
    if [ ! -e "$initrd" ] || [ "$HERE/guest/init" -nt "$initrd" ] || [ "$HERE/host/kernel.sh" -nt "$initrd" ]; then
        build_initrd
    fi
    exec 9>&-
}

download_kernel() {
    there apt-get || lacking "no apt-get to download a kernel with; unpack one and name its folder in KVRAIL_GUEST_KERNEL"
    local package part new=$CACHE/kernel.new
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    if [ -z "$package" ] && may_install; then
        $SUDO apt-get update -qq >&2 || :
        package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    fi
    [ -n "$package" ] || lacking "apt knows no linux-image-amd64 (is this Debian? then: ${SUDO:+$SUDO }apt-get update); or unpack a kernel
    package and name its folder in KVRAIL_GUEST_KERNEL"
    say "downloading $package, which is not installed, only unpacked into $CACHE"
    rm -rf "$new"
    mkdir -p "$new/deb"
    # As this user: the folder is not one that apt's own user may write to.
    local download=(apt-get -qq -o "APT::Sandbox::User=$(id -un)" download "$package")
    (cd "$new/deb" && { "${download[@]}" || { may_install && $SUDO apt-get update -qq && "${download[@]}"; }; }) >&2 ||
        lacking "cannot download $package (old package lists? ${SUDO:+$SUDO }apt-get update)"
    local patterns=('./boot/vmlinuz-*' './lib/modules/*/modules.*' './usr/lib/modules/*/modules.*')
    set -f
    for part in $PARTS; do
        # What another version of the kernel lacks or has elsewhere is seen below, by what needs it.
        patterns+=("./lib/modules/*/kernel/$part" "./usr/lib/modules/*/kernel/$part")
    done
    set +f
    dpkg-deb --fsys-tarfile "$new"/deb/*.deb | tar -x -C "$new" --wildcards "${patterns[@]}" 2>/dev/null || :
    rm -rf "$new/deb"
    [ -d "$new/lib" ] || [ ! -d "$new/usr/lib" ] || mv "$new/usr/lib" "$new/lib"
    local unpacked
    unpacked=$(ls "$new/lib/modules" 2>/dev/null) || lacking "$package holds no lib/modules"
    depmod -b "$new" "$unpacked" 2>/dev/null || :
    for part in $EARLY $LATE; do
        modprobe -d "$new" -S "$unpacked" --show-depends "$part" >/dev/null 2>&1 || lacking "$package has no module $part, or not all that it needs"
    done
    touch "$new/complete"
    rm -rf "$kernel"
    mv "$new" "$kernel"
}

build_initrd() {
    local tree module path name
    tree=$(mktemp -d)
    mkdir -p "$tree"/{bin,modules,proc,sys,dev,host,upper,root}
    cp "$(static_busybox)" "$tree/bin/busybox"
    cp "$HERE/guest/init" "$tree/init"
    chmod +x "$tree/init"
    : >"$tree/modules/order"
    for module in $EARLY; do
        # Prints what is to be loaded, in order; a module built into the kernel prints `builtin`.
        while read -r kind path _; do
            name=$(basename "${path%.xz}")
            [ "$kind" = insmod ] && [ ! -e "$tree/modules/$name" ] || continue
            case $path in
            *.xz) xz -dc "$path" >"$tree/modules/$name" ;;
            *) cp "$path" "$tree/modules/$name" ;;
            esac
            echo "$name" >>"$tree/modules/order"
        done < <(modprobe -d "$kernel" -S "$version" --show-depends "$module" || echo failed)
        grep -q . "$tree/modules/order" || lacking "cannot find module $module of kernel $version in $kernel"
    done
    (cd "$tree" && find . -print0 | cpio --null -o -H newc --quiet | gzip -1) >"$initrd.new"
    mv "$initrd.new" "$initrd"
    rm -rf "$tree"
}
