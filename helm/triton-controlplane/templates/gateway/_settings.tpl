{{/* The gateway's settings as docs/gateway.md has them. */}}
{{- define "triton-controlplane.gatewaySettings" -}}
{{- $settings := dict "address" "0.0.0.0" "grpc_port" 8001 "http_port" 8000 -}}
{{- range $key, $value := .Values.gateway.settings -}}
{{- $_ := set $settings $key (hasSuffix "_bytes" $key | ternary (include "triton-controlplane.bytes" $value | int64) $value) -}}
{{- end -}}
{{- toPrettyJson $settings -}}
{{- end -}}
