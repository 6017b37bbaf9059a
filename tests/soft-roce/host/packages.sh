# What has to be installed: Debian's package names, and how to see whether each is there. Sourced by `run`.
# Seen by what a package brings, not by its name, so that other distributions and own builds count too.

# there WHAT...: whether every command or file (with a glob) is there.
there() {
    local what
    for what in "$@"; do
        case $what in
        /*) compgen -G "$what" >/dev/null || return 1 ;;
        *) command -v "$what" >/dev/null || return 1 ;;
        esac
    done
}

# A library that the C compiler would link with.
linkable() {
    local path
    path=$(cc -print-file-name="lib$1.so" 2>/dev/null) && [ -e "$path" ]
}

libclang_there() {
    local folder
    for folder in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"} /usr/lib/llvm-*/lib /usr/lib64 /usr/lib /usr/lib/*-linux-gnu /usr/local/lib; do
        compgen -G "$folder/libclang*.so*" >/dev/null && return
    done
    return 1
}

# What the guest needs: an emulator, what its first steps run, and the user space of RDMA.
missing_for_guest() {
    there qemu-system-x86_64 || echo qemu-system-x86
    [ -n "$(static_busybox)" ] || echo busybox-static
    there cpio || echo cpio
    there modprobe depmod || echo kmod
    there ip rdma tc || echo iproute2
    there '/usr/lib*/*/libibverbs/librxe-*.so' || there '/usr/lib*/libibverbs/librxe-*.so' || echo ibverbs-providers
    there xz || echo xz-utils
}

# What `--features verbs` needs to build.
missing_for_build() {
    there cc || echo gcc
    there c++ || echo g++
    there cmake || echo cmake
    there make || there ninja || echo make
    there pkg-config || echo pkg-config
    there python3 || echo python3
    linkable nl-3 || echo libnl-3-dev
    linkable nl-route-3 || echo libnl-route-3-dev
    libclang_there || echo libclang-dev
    linkable ibverbs || echo libibverbs-dev
}

# A busybox that needs no library: the initial RAM disk has none.
static_busybox() {
    local path
    for path in "$(command -v busybox || :)" /bin/busybox /usr/bin/busybox; do
        if [ -x "$path" ] && ! ldd "$path" >/dev/null 2>&1; then
            echo "$path"
            return
        fi
    done
}

# The command that installs packages, as a user would type it.
install_command() {
    echo "${SUDO:+$SUDO }apt-get install --no-install-recommends $*"
}

install_packages() {
    there apt-get || give_up "cannot install $*: there is no apt-get here"
    say "installing $*"
    $SUDO apt-get update -qq >&2 && $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
        give_up "cannot install: $*"
}
