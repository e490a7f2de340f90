import { MusterError } from '#shared/errors'
import { pathText, policyFaults } from '#shared/policy/check'
import type { Policy } from '#shared/policy/schema'
import { readTextFile } from './json-file.ts'
import { placeInJson, repeatedName } from './json-place.ts'

/** Longest file that is looked at, octets: a hundred rules of the longest topics are shorter. */
const LONGEST = 2 << 20

/**
 * A policy, alone or as `policy show --json` prints it.
 * @throws MusterError invalid_request with each fault, its line and its field
 */
export function policyIn(path: string): Policy {
  const text = readTextFile(path)
  if (text.length > LONGEST) throw invalid(path, [`it is longer than ${LONGEST / 1_048_576} MiB`])
  let document: unknown
  try {
    document = JSON.parse(text)
  } catch (cause) {
    throw invalid(path, [cause instanceof Error ? cause.message : 'it is not JSON'])
  }
  const repeated = repeatedName(text)
  if (repeated !== null) {
    const { line, column, name } = repeated
    throw invalid(path, [`${line}:${column}: "${name}" is there twice`])
  }
  const isShown = typeof document === 'object' && document !== null && Object.hasOwn(document, 'policy')
  const base = isShown ? ['policy'] : []
  const policy = isShown ? (document as { policy: unknown }).policy : document // by the line above
  const faults = policyFaults(policy)
  if (faults.length > 0) {
    throw invalid(
      path,
      faults.map((fault) => {
        const { line, column } = placeInJson(text, [...base, ...fault.path])
        const field = pathText(fault.path)
        return `${line}:${column}: ${field === '' ? '' : `${field}: `}${fault.message}`
      }),
    )
  }
  return policy as Policy // it has no faults
}

function invalid(path: string, faults: readonly string[]): MusterError {
  return new MusterError('invalid_request', `Cannot use the policy "${path}": ${faults.join('; ')}`)
}
