# Completions of nodewall(8) for fish: `nodewall complete` knows what can be written, of commands, options and this host's configuration.

function __nodewall_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l program (command -s nodewall; or echo /usr/sbin/nodewall)
    set -l lines ($program complete -- $before[2..-1] "$current" 2>/dev/null)
    set -l name (string replace -r -- '^--[^=]*=' '' $current)
    set -l prefix (string match -r -- '^--[^=]*=' $current)
    switch "$lines[1]"
        case files
            printf "$prefix%s\n" (__fish_complete_path "$name")
        case directories
            printf "$prefix%s\n" (__fish_complete_directories "$name")
        case words
            printf '%s\n' $lines[2..-1]
    end
end

complete -c nodewall -f -a '(__nodewall_complete)'
