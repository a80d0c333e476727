#compdef nodewall
# Completions of nodewall(8) for zsh: `nodewall complete` knows what can be written, of commands, options and this host's configuration.

_nodewall() {
    local program=${commands[nodewall]:-/usr/sbin/nodewall} line
    local -a lines described
    lines=("${(@f)$("$program" complete -- "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    case $lines[1] in
        files) compset -P '--*='; _files ;;
        directories) compset -P '--*='; _files -/ ;;
        words)
            for line in "${(@)lines[2,-1]}"; do
                described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
            done
            _describe -V nodewall described
            ;;
    esac
}

# Loaded from fpath, this file is the function; sourced, it has to be told.
if [[ $funcstack[1] == _nodewall ]]; then _nodewall "$@"; else compdef _nodewall nodewall; fi
