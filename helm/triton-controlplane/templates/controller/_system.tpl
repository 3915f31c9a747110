{{/* The system as docs/system.md has it: what `ctl up -f` would be given, without a gateway. */}}
{{- define "triton-controlplane.system" -}}
{{- $fleets := list -}}
{{- range .Values.fleets -}}
{{- $fleet := include "triton-controlplane.fleet" (dict "root" $ "fleet" .) | fromJson -}}
{{- $said := dict "name" .name -}}
{{- range $key := list "replicas" "scaling" "gpus" "model_idle_s" "min_loaded" "load_timeout_s" "default" -}}
{{- if and (hasKey $fleet $key) (not (kindIs "invalid" (get $fleet $key))) -}}
{{- $_ := set $said $key (get $fleet $key) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "memory_bytes" "disk_bytes" -}}
{{- $_ := set $said $key (include "triton-controlplane.bytes" (get $fleet $key) | int64) -}}
{{- end -}}
{{- $fleets = append $fleets $said -}}
{{- end -}}
{{- $controller := dict -}}
{{- range $key, $value := .Values.controller.settings -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $controller $key $value -}}
{{- end -}}
{{- end -}}
{{- $metrics := dict "source" .Values.metrics.source -}}
{{- with .Values.metrics.prometheus_url -}}
{{- $_ := set $metrics "prometheus_url" . -}}
{{- end -}}
{{- toYaml (dict "registry" .Values.registry "fleets" $fleets "controller" $controller "metrics" $metrics) -}}
{{- end -}}

{{/* Credentials and the address of the bucket, for the controller alone. */}}
{{- define "triton-controlplane.s3Env" -}}
{{- with .Values.s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
- name: AWS_SESSION_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SESSION_TOKEN, optional: true}}
{{- end }}
{{- with .Values.s3.endpoint }}
- name: AWS_ENDPOINT_URL_S3
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
{{- end -}}
