// Writes docs/refusals.md from the table in shared/refusals.ts: `node tools/refusals-page.ts`
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { REFUSALS, type RefusalStage } from '../shared/refusals.ts'

const STAGES = {
  tls: 'Before the connection is accepted',
  connect: 'At CONNECT',
  session: 'In a session',
  enroll: 'At the enrollment service',
} as const satisfies Record<RefusalStage, string>

const INTRODUCTION = `# Refusals

Every device that is turned away is told, and recorded, with one of these codes. \`muster explain <device>\` prints the
code, what was seen, and what to do; the last 20 of a device are kept, those of strangers by key fingerprint and address.
This page is written from the table in \`shared/refusals.ts\` by \`node tools/refusals-page.ts\`.
`

/** The page as it has to be: one section a code, grouped by where it happens. */
export function refusalsPage(): string {
  const sections = Object.entries(STAGES).map(([stage, title]) => {
    const rows = Object.entries(REFUSALS).filter(([, row]) => row.stage === stage)
    return `\n## ${title}\n${rows.map(([code, row]) => section(code, row)).join('')}`
  })
  return INTRODUCTION + sections.join('')
}

function section(code: string, row: { text: string; evidence: readonly string[]; fix: string }): string {
  const evidence = row.evidence.map((name) => `\`${name}\``).join(', ') || 'none'
  return `\n### ${code}\n\n${row.text}\n\n- Evidence: ${evidence}.\n- What to do: ${row.fix}\n`
}

if (import.meta.main) writeFileSync(join(import.meta.dirname, '../docs/refusals.md'), refusalsPage())
