#!/usr/bin/env bash
# Submits a run as a JobSet to a GKE cluster with TPU node pools, by kubectl or (--xpk) by XPK.
#   bash launch/gke.sh submit | status | logs | delete
#     --run_id=ID --tpu_type=v5litepod-16 --bucket=gs://BUCKET --config=FILE --image=IMAGE
#     [--slices=1] [--topology=4x4] [--namespace=default] [--service_account=NAME] [--spot] [--secrets=FILE]
#     [--xpk --cluster=C --zone=ZONE --project=PROJECT] [--tail=100] [--dry-run] [--config.key=value ...]
# IMAGE is a container image with gdistill installed; launch/Dockerfile builds one.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($#)) || die 'a command is missing; one of submit status logs delete'
command=$1
shift
case $command in
  submit | status | logs | delete) ;;
  -h | --help) usage ;;
  *) die "'$command' is not a command of gke.sh; one of submit status logs delete" ;;
esac
parse 'run_id tpu_type bucket config image slices topology namespace service_account secrets cluster zone project tail spot! xpk!' "$@"
: "${SLICES:=1}" "${NAMESPACE:=default}" "${SERVICE_ACCOUNT:=default}" "${SPOT:=}" "${XPK:=}" "${TAIL:=100}" "${TOPOLOGY:=}"
: "${MAX_PREEMPTIONS:=100}" # restarts of the JobSet by Kubernetes after lost nodes
: "${KUBE_SECONDS:=120}" "${XPK_SECONDS:=900}"
cd "$ROOT"
check_run_id
check_positive SLICES
check_positive TAIL
check_cloud_name NAMESPACE
NAME=$(resource_name "$RUN_ID")
if [[ $XPK ]]; then
  check_zone
  need CLUSTER PROJECT
  check_cloud_name CLUSTER
  AT=(--cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT")
fi

topology_of() { # GENERATION CHIPS -> AxB or AxBxC
  case $1/$2 in
    v4/4 | v5p/4) echo 2x2x1 ;;
    v4/8 | v5p/8) echo 2x2x2 ;;
    v4/16 | v5p/16) echo 2x2x4 ;;
    v4/32 | v5p/32) echo 2x4x4 ;;
    v4/64 | v5p/64) echo 4x4x4 ;;
    v4/128 | v5p/128) echo 4x4x8 ;;
    v4/256 | v5p/256) echo 4x8x8 ;;
    v4/512 | v5p/512) echo 8x8x8 ;;
    v4/1024 | v5p/1024) echo 8x8x16 ;;
    */1) echo 1x1 ;;
    */4) echo 2x2 ;;
    */8) echo 2x4 ;;
    */16) echo 4x4 ;;
    */32) echo 4x8 ;;
    */64) echo 8x8 ;;
    */128) echo 8x16 ;;
    */256) echo 16x16 ;;
  esac
}

check_submit() {
  local expression
  need TPU_TYPE CONFIG IMAGE
  slice_of "$TPU_TYPE"
  check_bucket
  check_secrets
  check_cloud_name SERVICE_ACCOUNT
  [[ $IMAGE =~ ^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$ ]] || die "--image='$IMAGE' is not a valid name of a container image, such as REGISTRY/PROJECT/gdistill:1"
  [[ ! $CONFIG =~ ^/ && $CONFIG != *..* ]] || die "--config='$CONFIG' must be a path inside the image's copy of the repository"
  if [[ -z $TOPOLOGY ]]; then
    TOPOLOGY=$(topology_of "$GENERATION" "$CHIPS")
    [[ $TOPOLOGY ]] || die "--tpu_type='$TPU_TYPE' has no usual topology; give --topology=AxBxC with $CHIPS chips"
  fi
  [[ $TOPOLOGY =~ ^[0-9]{1,3}(x[0-9]{1,3}){1,2}$ ]] || die "--topology='$TOPOLOGY' must be such as 4x4 or 2x2x4"
  expression=${TOPOLOGY//x/*10#}
  ((10#$expression == CHIPS)) || die "--topology='$TOPOLOGY' must have the $CHIPS chips of --tpu_type=$TPU_TYPE"
  check_plan "$((CHIPS * SLICES))" "$SLICES"
  PAUSE=$RESTART_SECONDS
  ((HOSTS * SLICES == 1)) || PAUSE=60 # longer than a process takes to notice that another one died
  WORKDIR=$BUCKET/$RUN_ID
  COMMAND=(bash launch/supervise.sh --workdir="$WORKDIR" -- python -m gdistill.main
    --config="$CONFIG" --workdir="$WORKDIR" ${OVERRIDES[@]+"${OVERRIDES[@]}"})
}

quoted() { # TEXT -> a quoted JSON string, which is valid YAML
  local text=$1
  text=${text//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  local accelerator word
  case $GENERATION in
    v4) accelerator=tpu-v4-podslice ;;
    v5litepod) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v6e) accelerator=tpu-v6e-slice ;;
  esac
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  namespace: $NAMESPACE
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_PREEMPTIONS
    rules:
      - action: FailJobSet # for the exit codes that podFailurePolicy below lists
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: gdistill
                  operator: In
                  values: [2, 3, 4, 5, 75]
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: $SERVICE_ACCOUNT
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
$([[ -z $SPOT ]] || printf '                cloud.google.com/gke-spot: "true"')
              tolerations:
                - key: google.com/tpu
                  operator: Exists
                - key: cloud.google.com/gke-spot
                  operator: Exists
              containers:
                - name: gdistill
                  image: $(quoted "$IMAGE")
                  command:
$(for word in "${COMMAND[@]}"; do printf '                    - %s\n' "$(quoted "$word")"; done)
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  env:
                    - {name: EXHAUSTED_CODE, value: "75"}
                    - {name: RESTART_SECONDS, value: "$PAUSE"}
                    - {name: MAX_RESTARTS, value: "$MAX_RESTARTS"}
                    - {name: MAX_CRASHES, value: "$MAX_CRASHES"}
                    - name: RESTART_COUNT
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['jobset.sigs.k8s.io/restart-attempt']
$([[ -z ${SECRETS:-} ]] || printf '                  envFrom:\n                    - secretRef: {name: %s}' "$NAME")
                  resources:
                    limits:
                      google.com/tpu: $CHIPS_PER_HOST
YAML
}

kube() { limited "$KUBE_SECONDS" kubectl --namespace="$NAMESPACE" "$@"; }

submit_jobset() {
  local text found
  text=$(manifest | grep -v '^$')
  if [[ $DRY_RUN ]]; then
    kube get jobset "$NAME" --ignore-not-found --output=name
  else
    found=$(kube get jobset "$NAME" --ignore-not-found --output=name) || die 'kubectl failed or did not answer: nothing was submitted' 1
    [[ -z $found ]] || die "--run_id='$RUN_ID' has a JobSet already, $NAME; delete it first (the workdir stays), or choose another"
  fi
  if [[ ${SECRETS:-} ]]; then
    if [[ $DRY_RUN ]]; then
      printf '%s | ' "$(kube create secret generic "$NAME" --from-env-file="$SECRETS" --dry-run=client --output=yaml)"
      kube apply --filename=-
    else
      kube create secret generic "$NAME" --from-env-file="$SECRETS" --dry-run=client --output=yaml | kube apply --filename=-
    fi
  fi
  if [[ $DRY_RUN ]]; then
    printf "%s <<'YAML'\n%s\nYAML\n" "$(kube apply --filename=-)" "$text"
  else
    kube apply --filename=- <<<"$text"
  fi
}

submit_xpk() {
  local line what
  # exec: XPK signals the process that it started, which must be supervise.sh. RESTART_COUNT=1: XPK
  # does not tell whether earlier pods ran, so supervise.sh always waits until their lock expires.
  printf -v line '%q ' env EXHAUSTED_CODE=75 RESTART_COUNT=1 RESTART_SECONDS="$PAUSE" MAX_RESTARTS="$MAX_RESTARTS" MAX_CRASHES="$MAX_CRASHES" "${COMMAND[@]}"
  what=(xpk workload create --workload="$NAME" "${AT[@]}" --tpu-type="$TPU_TYPE" --num-slices="$SLICES"
    --docker-image="$IMAGE" --max-restarts="$MAX_PREEMPTIONS" --command="exec ${line% }")
  [[ -z $SPOT ]] || what+=(--spot)
  [[ -z ${SECRETS:-} ]] || what+=(--env-file="$SECRETS")
  limited "$XPK_SECONDS" "${what[@]}"
}

case $command/$XPK in
  submit/1)
    check_submit
    submit_xpk
    ;;
  submit/)
    check_submit
    submit_jobset
    ;;
  status/1) limited "$XPK_SECONDS" xpk workload list "${AT[@]}" --filter-by-job="$NAME" ;;
  delete/1) limited "$XPK_SECONDS" xpk workload delete --workload="$NAME" "${AT[@]}" --force ;;
  status/)
    kube get jobset "$NAME"
    kube get pods --selector="jobset.sigs.k8s.io/jobset-name=$NAME"
    ;;
  delete/)
    kube delete jobset "$NAME" --ignore-not-found
    kube delete secret "$NAME" --ignore-not-found
    ;;
  logs/*) kube logs --selector="jobset.sigs.k8s.io/jobset-name=$NAME" --tail="$TAIL" --prefix --max-log-requests=200 ;;
esac
