{{/* Bytes of a size such as 512Mi, 1.5GB or 1000, in digits. */}}
{{- define "triton-controlplane.bytes" -}}
{{- if kindIs "string" . -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" . -}}
{{- $unit := . | trimPrefix $number | upper | trimSuffix "B" -}}
{{- $units := dict "" 1 "K" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "KI" 1024 "MI" 1048576 "GI" 1073741824 "TI" 1099511627776 -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "%q is no size: write it like 512Mi, 4Gi or a number of bytes" .) -}}
{{- end -}}
{{- mulf (float64 $number) (get $units $unit | float64) | int64 -}}
{{- else -}}
{{- int64 . -}}
{{- end -}}
{{- end -}}

{{/*
A fleet with its defaults, as JSON. Takes root and fleet. What the fleet says wins, a zero too; of the settings that are
maps of independent parts, the parts that it does not name keep their defaults.
*/}}
{{- define "triton-controlplane.fleet" -}}
{{- $all := deepCopy .root.Values.fleetDefaults -}}
{{- $parted := list "image" "agentImage" "podDisruptionBudget" "podLabels" "podAnnotations" -}}
{{- range $key, $value := .fleet -}}
{{- if and (has $key $parted) (kindIs "map" $value) (kindIs "map" (get $all $key)) -}}
{{- $part := get $all $key -}}
{{- range $name, $inner := $value -}}
{{- $_ := set $part $name $inner -}}
{{- end -}}
{{- else -}}
{{- $_ := set $all $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/* An image's reference. Takes root and image. A digest wins over a tag. */}}
{{- define "triton-controlplane.image" -}}
{{- $registry := default .root.Values.image.registry .image.registry -}}
{{- $tag := default (default .root.Chart.AppVersion .root.Values.image.tag) .image.tag -}}
{{- $name := empty $registry | ternary .image.repository (printf "%s/%s" $registry .image.repository) -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (toString $tag) -}}
{{- end -}}
{{- end -}}

{{- define "triton-controlplane.pullPolicy" -}}
{{- default .root.Values.image.pullPolicy .image.pullPolicy -}}
{{- end -}}

{{/* Seconds that a replica which ends has until nothing is led there any more. Takes root and fleet. */}}
{{- define "triton-controlplane.drain" -}}
{{- if kindIs "invalid" .fleet.drainTimeoutSeconds -}}
{{- add (ceil .root.Values.controller.settings.drain_s | int64) 30 -}}
{{- else -}}
{{- int64 .fleet.drainTimeoutSeconds -}}
{{- end -}}
{{- end -}}
