# Completions of nodewall(8) for bash: `nodewall complete` knows what can be written, of commands, options and this host's configuration.

_nodewall() {
    local rest=${COMP_LINE:0:COMP_POINT} words=() piece i blank
    # Bash takes words apart at = and :, which are parts of ours: what stands together in the line is one word.
    for ((i = 0; i <= COMP_CWORD; i++)); do
        piece=${COMP_WORDS[i]}
        blank=${rest%%[![:space:]]*}
        rest=${rest#"$blank"}
        if ((i == COMP_CWORD)); then piece=$rest; fi
        if [[ -n $blank || ${#words[@]} -eq 0 ]]; then words+=("$piece"); else words[-1]+=$piece; fi
        rest=${rest#"$piece"}
    done

    local program lines
    program=$(type -P nodewall || echo /usr/sbin/nodewall)
    mapfile -t lines < <("$program" complete -- "${words[@]:1}" 2>/dev/null)
    local current=${words[-1]} kind=${lines[0]-}
    COMPREPLY=()
    case $kind in
        files | directories)
            local action=-f name=${current#--*=}
            if [[ $kind == directories ]]; then action=-d; fi
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen "$action" -- "$name")
            ;;
        words)
            # What bash has before the piece that it completes, it keeps.
            local kept=${current%"${current##*[$COMP_WORDBREAKS]}"} line
            for line in "${lines[@]:1}"; do
                line=${line%%$'\t'*}
                COMPREPLY+=("${line#"$kept"}")
            done
            ;;
    esac
}

complete -F _nodewall nodewall
