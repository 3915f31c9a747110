{{/* Parts that pods share. */}}

{{/* Where a pod may run. Takes root, the settings, and the labels by which pods of its kind are spread. */}}
{{- define "triton-controlplane.scheduling" -}}
{{- with .settings.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
  # Without these, Kubernetes waits five minutes before it makes a new pod elsewhere.
  {{- range list "not-ready" "unreachable" }}
  - key: node.kubernetes.io/{{ . }}
    operator: Exists
    effect: NoExecute
    tolerationSeconds: {{ int64 $.root.Values.unreachableSeconds }}
  {{- end }}
  {{- with .settings.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .settings.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .settings.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range .settings.topologySpreadConstraints }}
  {{- $constraint := deepCopy . }}
  {{- if not (hasKey . "labelSelector") }}
  {{- $_ := set $constraint "labelSelector" (dict "matchLabels" (fromYaml $.labels)) }}
  {{- end }}
  - {{ toYaml $constraint | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- with .settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .settings.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Pull secrets: those of the part, and those of all. Takes root and settings. */}}
{{- define "triton-controlplane.pullSecrets" -}}
{{- $names := concat .root.Values.imagePullSecrets (default (list) .settings.imagePullSecrets) | uniq }}
{{- with $names }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The controller's name where the cluster resolves none. */}}
{{- define "triton-controlplane.hostAliases" -}}
{{- with .Values.controllerHostAlias }}
hostAliases:
  - ip: {{ . }}
    hostnames:
      - {{ include "triton-controlplane.fullname" $ }}-controller
{{- end }}
{{- end -}}

{{/* An ingress rule for who may scrape. Takes root and port. */}}
{{- define "triton-controlplane.metricsFrom" -}}
{{- with .root.Values.networkPolicy.metricsFrom -}}
- from:
    {{- toYaml . | nindent 4 }}
  ports:
    - {port: {{ $.port }}, protocol: TCP}
{{- end -}}
{{- end -}}

{{/* Who a pod is, for its commands. */}}
{{- define "triton-controlplane.podEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: HOME
  value: /tmp
{{- end -}}

{{/* What agents and gateways show to the controller: good for nothing else, renewed by the kubelet. */}}
{{- define "triton-controlplane.tokenVolume" -}}
- name: token
  projected:
    defaultMode: 288 # 0440
    sources:
      - serviceAccountToken:
          audience: triton-controlplane
          expirationSeconds: 3600
          path: token
{{- end -}}

{{- define "triton-controlplane.tokenMount" -}}
- name: token
  mountPath: /var/run/secrets/triton-controlplane
  readOnly: true
{{- end -}}
