import { isMusterError, MusterError, type OperationErrorCode } from '#shared/errors'
import { isRefusalErrorCode, REFUSALS, refusalCode } from '#shared/refusals'
import { SCHEMA_VERSION } from './context.ts'
import { type ExitCode, exitCodeOf } from './exit-codes.ts'
import type { Terminal } from './terminal.ts'
import { visible } from './visible.ts'

/** What to do about an error that is no refusal, where there is something to do. */
const FIXES: Partial<Record<OperationErrorCode, string>> = {
  unreachable: 'Start the plane with `muster up`, or name its data directory with --data.',
  unauthenticated: 'Use the operator profile of the running plane: name its data directory with --data.',
  forbidden: 'Only an operator may do this: use an operator certificate or an API token.',
  port_taken:
    'Stop what listens there, or take other ports with --port-base (MQTT over WebSocket: --websocket-port).',
  directory_in_use: 'Stop the other one, or take another directory with --data.',
  undo_over: '`muster device reissue <device>` lets a device enroll again.',
}

interface Failure {
  /** `R-…` for a refusal, the error code otherwise. */
  readonly code: string
  readonly message: string
  readonly fix?: string
  readonly evidence: MusterError['evidence']
}

/** Shows an error once, as a sentence or as a document, and says which status it ends with. */
export function showFailure(error: unknown, terminal: Terminal, asJson: boolean): ExitCode {
  if (!isMusterError(error)) terminal.err((error as Error)?.stack ?? String(error)) // a bug: its place is the news
  const known = isMusterError(error) ? error : new MusterError('internal', 'Muster failed: this is a bug')
  const failure = describe(known)
  if (asJson) terminal.out(JSON.stringify({ schemaVersion: SCHEMA_VERSION, error: failure }, null, 2))
  else terminal.err(asText(failure, terminal))
  return exitCodeOf(known.code)
}

function describe({ code, message, evidence }: MusterError): Failure {
  if (isRefusalErrorCode(code)) {
    const { fix } = REFUSALS[refusalCode(code)]
    return { code: refusalCode(code), message, fix: named(fix, evidence), evidence }
  }
  const fix = FIXES[code]
  return { code, message, ...(fix ? { fix } : {}), evidence }
}

/** Puts the device that the evidence names into the command of a fix. */
function named(fix: string, evidence: MusterError['evidence']): string {
  const { device } = evidence
  return device === undefined ? fix : fix.replaceAll('<device>', String(device))
}

function asText({ code, message, fix }: Failure, terminal: Terminal): string {
  const sentence = `${terminal.paint('red', '✘')} ${code.startsWith('R-') ? `${code}  ` : ''}${visible(message)}`
  return fix ? `${sentence}\n  ${visible(fix)}` : sentence
}
