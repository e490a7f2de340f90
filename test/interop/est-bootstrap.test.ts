import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { ports } from '#shared/layout'
import { startPlane } from '../support/plane.ts'
import { MUSTER_COMMAND as muster, sh } from '../support/sh.ts'

/** As IEEE 802.1AR has it: no purpose named, no end, the serial number in the subject. */
const IDEVID = `[idevid]
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
`

t.test('curl with certificates that openssl made', async (t) => {
  const cwd = t.testdir()
  writeFileSync(join(cwd, 'maker.cnf'), IDEVID)
  const plane = await startPlane(t, { data: join(cwd, 'data') })
  const { enrollment } = ports(plane.portBase)
  const env = { EST: `https://localhost:${enrollment}/.well-known/est` }
  const curl = `curl --fail-with-body --silent --show-error --cacert data/ca/root.crt --header 'Content-Type: application/pkcs10'`
  const readCertificate = 'base64 -d | openssl pkcs7 -inform DER -print_certs'
  const request = (name: string, subject: string) => {
    sh(cwd, `openssl ecparam -name prime256v1 -genkey -noout -out ${name}.key`)
    sh(cwd, `openssl req -new -key ${name}.key -subj ${subject} -outform DER | base64 > ${name}.csr`)
  }

  await t.test('a manufacturer’s CA makes a certificate for a device, with which it enrolls', async (t) => {
    sh(cwd, 'openssl ecparam -name secp384r1 -genkey -noout -out maker.key')
    const ca = 'openssl req -new -key maker.key -subj "/O=Acme/CN=Acme IDevID CA" -out maker.csr'
    const end = '-not_after 99991231235959Z'
    sh(cwd, ca)
    const signed = (of: string) =>
      `openssl x509 -req -sha384 -extfile maker.cnf ${of} ${sh(cwd, 'openssl x509 -help 2>&1 || true').includes('-not_after') ? end : '-days 36500'}`
    sh(cwd, signed('-in maker.csr -signkey maker.key -extensions ca -out maker.crt'))
    sh(cwd, 'openssl ecparam -name prime256v1 -genkey -noout -out idevid.key')
    sh(cwd, 'openssl req -new -key idevid.key -subj "/O=Acme/serialNumber=SN-0042" -out idevid.csr')
    sh(
      cwd,
      signed(
        '-in idevid.csr -CA maker.crt -CAkey maker.key -CAcreateserial -extensions idevid -out idevid.crt',
      ),
    )
    sh(cwd, `${muster} batch create ovens --data data`)
    sh(cwd, `${muster} manufacturer add acme --batch ovens --ca maker.crt --data data`)
    const row = `printf 'serialNumber,certificateSerial,id\\nSN-0042,%s,oven-42\\n' "$(openssl x509 -in idevid.crt -noout -serial | cut -d= -f2)"`
    sh(cwd, `${row} > list.csv && ${muster} manufacturer import acme list.csv --data data`)

    request('oven', '/')
    const post = `${curl} --cert idevid.crt --key idevid.key --data-binary @oven.csr $EST`
    sh(cwd, `${post}/ovens/simpleenroll | ${readCertificate} -out oven.crt`, env)
    t.match(sh(cwd, 'openssl x509 -in oven.crt -noout -subject'), /CN = oven-42/)
    sh(cwd, `${post}/simpleenroll | ${readCertificate} -out again.crt`, env)
    t.equal(
      sh(cwd, 'openssl x509 -in again.crt -noout -serial'),
      sh(cwd, 'openssl x509 -in oven.crt -noout -serial'),
    )
    request('other', '/')
    const other = `${curl} --cert idevid.crt --key idevid.key --data-binary @other.csr $EST/simpleenroll || true`
    t.match(sh(cwd, other, env), /^R-IDEVID-USED/)
    const renewal = `${curl} --cert idevid.crt --key idevid.key --data-binary @oven.csr $EST/simplereenroll || true`
    t.match(sh(cwd, renewal, env), /^R-UNKNOWN-CA/)
  })

  await t.test(
    'the key of a batch enrolls a device with a key of its own, and no more than it may',
    async (t) => {
      sh(cwd, `${muster} batch claim lamps --uses 1 --expires 1h --data data`)
      t.match(sh(cwd, 'openssl x509 -in lamps-claim.crt -noout -ext subjectAltName'), /\/claim\/c-/)
      request('lamp', '/CN=lamp-1')
      const post = `${curl} --cert lamps-claim.crt --key lamps-claim.key $EST/simpleenroll`
      sh(cwd, 'openssl req -new -key lamps-claim.key -subj /CN=lamp-3 -outform DER | base64 > own.csr')
      t.match(sh(cwd, `${post} --data-binary @own.csr || true`, env), /^R-CSR-KEY/)
      sh(cwd, `${post} --data-binary @lamp.csr | ${readCertificate} -out lamp.crt`, env)
      t.match(sh(cwd, 'openssl x509 -in lamp.crt -noout -subject'), /CN = lamp-1/)
      request('second', '/CN=lamp-2')
      t.match(sh(cwd, `${post} --data-binary @second.csr || true`, env), /^R-TOKEN-SPENT/)
      t.match(
        sh(cwd, `${muster} status --data data`),
        /^ALARM +claim c-\w+: 1 attempt\(s\) refused with R-TOKEN-SPENT/m,
      )
    },
  )
})
