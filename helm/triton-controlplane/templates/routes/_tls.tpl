{{/* The Secret with the certificate of the Ingresses; nothing where they are plain. */}}
{{- define "triton-controlplane.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{- .Values.tls.existingSecret -}}
{{- else if .Values.tls.certManager.enabled -}}
{{- include "triton-controlplane.fullname" . }}-tls
{{- end -}}
{{- end -}}
