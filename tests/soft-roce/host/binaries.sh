# Builds what is tested, and finds the binaries. Sourced by `run`.

# A test binary belongs into the guest if its source says that it has to do with devices: the feature, or the variable that asks for them.
MARK='feature *= *"verbs"|KVRAIL_VERBS'

# The value of a member of a line of JSON: a string, or the first string of an array.
member() {
    sed -nE "s/.*\"$1\":\\[?\"([^\"]*)\".*/\\1/p" <<<"$2"
}

# Sets $KVRAIL_BIN, and writes the list that `guest/suite` reads to the file $1.
build_binaries() {
    local list=$1 manifest source name line folder executable arguments=() packages=() units=() profile=()
    [ -z "$RELEASE" ] || profile=(--release)
    cd "$ROOT" || exit 3
    for manifest in */Cargo.toml; do
        grep -qE '^verbs *=' "$manifest" || continue
        folder=${manifest%/*}
        packages+=(-p "$(sed -nE 's/^name *= *"(.*)"/\1/p' "$manifest" | head -n 1)")
        for source in "$folder"/tests/*.rs "$folder"/tests/*/main.rs; do
            [ -e "$source" ] && [[ $source == *"$ONLY"* ]] && grep -qE "$MARK" "$source" || continue
            name=${source#"$folder"/tests/}
            name=${name%/main.rs}
            arguments+=(--test "${name%.rs}")
        done
        # Tests beside the code, of modules named `verbs`.
        if [[ $folder/src/lib.rs == *"$ONLY"* ]] && grep -rqs '#\[test\]' "$folder"/src/*/verbs "$folder"/src/verbs "$folder"/src/*/verbs.rs; then
            units+=("$folder")
        fi
    done
    [ ${#packages[@]} -gt 0 ] || give_up "no package has a feature \`verbs\`"
    say "building: cargo build --features verbs ${packages[*]} --bin kvrail ${arguments[*]}"
    cargo build --locked "${profile[@]}" "${packages[@]}" --features verbs --bin kvrail "${arguments[@]}" --message-format=json-render-diagnostics >"$list.json" ||
        give_up_build
    if [ ${#units[@]} -gt 0 ]; then
        for folder in "${units[@]}"; do
            cargo test --no-run --locked "${profile[@]}" --manifest-path "$folder/Cargo.toml" --lib --features verbs \
                --message-format=json-render-diagnostics >>"$list.json" || give_up_build
        done
    fi
    : >"$list"
    while IFS= read -r line; do
        [[ $line == *'"reason":"compiler-artifact"'* && $line == *'"executable":"'* ]] || continue
        executable=$(member executable "$line")
        folder=$(member manifest_path "$line")
        folder=${folder%/Cargo.toml}
        source=$(member src_path "$line")
        name=${source#"$ROOT"/}
        [[ $name == *"$ONLY"* ]] || [ "$(member kind "$line")" = bin ] || continue
        case $(member kind "$line") in
        bin) KVRAIL_BIN=$executable ;;
        test)
            printf '%s\t%s\t%s' "$name" "$folder" "$executable" >>"$list"
            if [ ${#FILTER[@]} -gt 0 ]; then printf '\t%s' "${FILTER[@]}" >>"$list"; fi
            echo >>"$list"
            ;;
        lib)
            # Only the modules about devices; the others need no guest.
            printf '%s\t%s\t%s\tverbs::\n' "$name" "$folder" "$executable" >>"$list"
            ;;
        esac
    done <"$list.json"
    [ -n "${KVRAIL_BIN:-}" ] || give_up "cargo built no kvrail"
}

give_up_build() {
    say "the build with --features verbs failed"
    exit 1
}
